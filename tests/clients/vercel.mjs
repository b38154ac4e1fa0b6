// Drives the AI SDK of Vercel with its providers for both vendors.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { Output, generateText, isStepCount, jsonSchema, streamText, tool } from "ai";
import { MAX_TURNS, baseUrl, emptyResult, facts, hasTools, isStreamed, key, run, usageOf } from "./driver.mjs";

globalThis.AI_SDK_LOG_WARNINGS = false;

const settings = { baseURL: `${baseUrl}/v1`, apiKey: key };
const anthropic = createAnthropic(settings);
const openai = createOpenAI(settings);
const image = { type: "image", image: facts.image, mediaType: "image/png" };
const [earlierQuestion, earlierAnswer] = facts.earlier;

const drive = (modelOf, optionsOf, showsThinking) => async (scenario, model) => {
  const request = {
    model: modelOf(model),
    maxRetries: 0,
    // Its provider for Anthropic adds the budget for thinking to this.
    maxOutputTokens: facts.max_tokens - (optionsOf(scenario).anthropic?.thinking?.budgetTokens ?? 0),
    system: facts.system,
    stopWhen: isStepCount(MAX_TURNS),
    providerOptions: optionsOf(scenario),
    messages: [{ role: "user", content: facts.question }],
  };
  if (scenario === "history")
    request.messages = [
      { role: "user", content: earlierQuestion },
      { role: "assistant", content: earlierAnswer },
      { role: "user", content: [{ type: "text", text: facts.question }, image] },
    ];
  if (hasTools(scenario)) request.tools = Object.fromEntries(facts.tools.map(asTool));
  if (scenario === "schema") request.output = Output.object({ schema: jsonSchema(facts.schema), name: "report" });
  const result = emptyResult();
  const answer = isStreamed(scenario) ? await streamed(request, result) : await generateText(request);
  if (scenario === "schema") return { parsed: await answer.output };
  const steps = await answer.steps;
  for (const step of steps) {
    result.text.push(step.text);
    if (step.reasoningText) result.thinking.push(step.reasoningText);
    result.calls.push(...step.toolCalls.map((call) => ({ name: call.toolName, arguments: call.input })));
  }
  const { usage, finishReason } = steps.at(-1);
  result.usage = usageOf(usage.inputTokens, usage.inputTokenDetails.cacheReadTokens, usage.outputTokens);
  result.finish = finishReason;
  return { ...result, thinking: showsThinking ? result.thinking : null };
};

const asTool = ({ name, description, schema }) => [
  name,
  tool({ description, inputSchema: jsonSchema(schema), execute: async () => facts.results[name] }),
];

async function streamed(request, result) {
  let failure = null;
  const answer = streamText({ ...request, onError: ({ error }) => (failure ??= error) });
  let deltas = "";
  for await (const text of answer.textStream) deltas += text;
  if (failure) throw failure;
  result.deltas.push(deltas);
  return answer;
}

const anthropicOptions = (scenario) => ({
  anthropic: {
    structuredOutputMode: "outputFormat",
    ...(scenario.startsWith("thinking") ? { thinking: { type: "enabled", budgetTokens: 2048 } } : {}),
  },
});
const chatOptions = (scenario) => ({
  openai: scenario.startsWith("thinking") ? { reasoningEffort: "medium", forceReasoning: true } : {},
});
const responsesOptions = (scenario) => ({
  openai: {
    store: false,
    ...(scenario.startsWith("thinking")
      ? {
          forceReasoning: true,
          reasoningEffort: "medium",
          reasoningSummary: "auto",
          include: ["reasoning.encrypted_content"],
        }
      : {}),
  },
});

await run({
  "vercel-anthropic": drive((model) => anthropic(model), anthropicOptions, true),
  "vercel-chat": drive((model) => openai.chat(model), chatOptions, false),
  "vercel-responses": drive((model) => openai.responses(model), responsesOptions, true),
});
