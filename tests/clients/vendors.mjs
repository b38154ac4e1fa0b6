// Drives the vendors' SDKs: Anthropic Messages, OpenAI Chat Completions and Responses.
import Anthropic from "@anthropic-ai/sdk";
import { zodOutputFormat } from "@anthropic-ai/sdk/helpers/zod";
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { MAX_TURNS, baseUrl, emptyResult, facts, hasTools, isStreamed, key, run, usageOf } from "./driver.mjs";

const options = { apiKey: key, maxRetries: 0, timeout: 20_000 };
const anthropic = new Anthropic({ ...options, baseURL: baseUrl });
const openai = new OpenAI({ ...options, baseURL: `${baseUrl}/v1` });
const report = z.object({ city: z.string(), degrees: z.number() });
const dataUrl = `data:image/png;base64,${facts.image}`;
const [earlierQuestion, earlierAnswer] = facts.earlier;

async function messages(scenario, model) {
  const request = { model, max_tokens: facts.max_tokens, system: facts.system };
  let turns = [{ role: "user", content: facts.question }];
  if (scenario === "history") {
    const source = { type: "base64", media_type: "image/png", data: facts.image };
    turns = [
      { role: "user", content: earlierQuestion },
      { role: "assistant", content: earlierAnswer },
      { role: "user", content: [{ type: "text", text: facts.question }, { type: "image", source }] },
    ];
  }
  if (hasTools(scenario))
    request.tools = facts.tools.map(({ name, description, schema }) => ({ name, description, input_schema: schema }));
  if (scenario === "thinking") request.thinking = { type: "enabled", budget_tokens: 2048 };
  if (scenario === "thinking_streamed") request.thinking = { type: "adaptive", display: "summarized" };
  if (scenario === "schema") {
    const format = zodOutputFormat(report);
    const parsed = await anthropic.messages.parse({ ...request, messages: turns, output_config: { format } });
    return { parsed: parsed.parsed_output };
  }
  const result = emptyResult();
  for (let turn = 0; turn < MAX_TURNS; turn++) {
    const { message, deltas } = await oneMessage({ ...request, messages: turns }, isStreamed(scenario));
    if (deltas !== null) result.deltas.push(deltas);
    const of = (type) => message.content.filter((block) => block.type === type);
    result.text.push(of("text").map((block) => block.text).join(""));
    result.thinking.push(...of("thinking").map((block) => block.thinking));
    const calls = of("tool_use");
    result.calls.push(...calls.map(({ name, input }) => ({ name, arguments: input })));
    const { input_tokens: fresh, cache_read_input_tokens: cached, output_tokens: output } = message.usage;
    result.usage = usageOf(fresh + (cached ?? 0), cached, output);
    result.finish = message.stop_reason === "max_tokens" ? "length" : message.stop_reason;
    if (message.stop_reason !== "tool_use") break;
    const results = calls.map(({ id, name }) => ({
      type: "tool_result",
      tool_use_id: id,
      content: [{ type: "text", text: facts.results[name] }],
    }));
    turns = [...turns, { role: "assistant", content: message.content }, { role: "user", content: results }];
  }
  return result;
}

async function oneMessage(request, streams) {
  if (!streams) return { message: await anthropic.messages.create(request), deltas: null };
  let deltas = "";
  const stream = anthropic.messages.stream(request).on("text", (text) => (deltas += text));
  return { message: await stream.finalMessage(), deltas };
}

async function chat(scenario, model) {
  const request = { model, max_completion_tokens: facts.max_tokens };
  let turns = [{ role: "developer", content: facts.system }];
  let content = facts.question;
  if (scenario === "history") {
    turns.push({ role: "user", content: earlierQuestion }, { role: "assistant", content: earlierAnswer });
    content = [{ type: "text", text: content }, { type: "image_url", image_url: { url: dataUrl } }];
  }
  turns.push({ role: "user", content });
  if (hasTools(scenario))
    request.tools = facts.tools.map(({ name, description, schema: parameters }) => ({
      type: "function",
      function: { name, description, parameters, strict: true },
    }));
  if (scenario.startsWith("thinking")) request.reasoning_effort = "low";
  if (scenario === "schema") {
    const form = zodResponseFormat(report, "report");
    const parsed = await openai.chat.completions.parse({ ...request, messages: turns, response_format: form });
    return { parsed: parsed.choices[0].message.parsed };
  }
  const result = emptyResult();
  for (let turn = 0; turn < MAX_TURNS; turn++) {
    const { answer, deltas } = await oneCompletion({ ...request, messages: turns }, isStreamed(scenario));
    if (deltas !== null) result.deltas.push(deltas);
    const { message, finish_reason: finish } = answer.choices[0];
    result.text.push(message.content ?? "");
    if (message.reasoning_content) result.thinking.push(message.reasoning_content);
    const calls = message.tool_calls ?? [];
    result.calls.push(
      ...calls.map((call) => ({ name: call.function.name, arguments: JSON.parse(call.function.arguments) })),
    );
    const { prompt_tokens: input, prompt_tokens_details: details, completion_tokens: output } = answer.usage;
    result.usage = usageOf(input, details?.cached_tokens, output);
    result.finish = finish;
    if (finish !== "tool_calls") break;
    const results = calls.map(({ id, function: { name } }) => ({
      role: "tool",
      tool_call_id: id,
      content: facts.results[name],
    }));
    turns = [...turns, message, ...results];
  }
  return { ...result, thinking: isStreamed(scenario) ? null : result.thinking };
}

async function oneCompletion(request, streams) {
  if (!streams) return { answer: await openai.chat.completions.create(request), deltas: null };
  let deltas = "";
  const stream = openai.chat.completions.stream({ ...request, stream_options: { include_usage: true } });
  stream.on("content", (text) => (deltas += text));
  return { answer: await stream.finalChatCompletion(), deltas };
}

async function responses(scenario, model) {
  const request = { model, max_output_tokens: facts.max_tokens, store: false };
  let items = [{ role: "developer", content: facts.system }];
  let content = facts.question;
  if (scenario === "history") {
    items.push({ role: "user", content: earlierQuestion }, { role: "assistant", content: earlierAnswer });
    content = [
      { type: "input_text", text: content },
      { type: "input_image", image_url: dataUrl, detail: "high" },
    ];
  }
  items.push({ role: "user", content });
  if (hasTools(scenario))
    request.tools = facts.tools.map(({ name, description, schema: parameters }) => ({
      type: "function",
      name,
      description,
      parameters,
      strict: false,
    }));
  if (scenario.startsWith("thinking")) {
    request.reasoning = { effort: "high", summary: "detailed" };
    request.include = ["reasoning.encrypted_content"];
  }
  if (scenario === "schema") {
    const text = { format: zodTextFormat(report, "report") };
    return { parsed: (await openai.responses.parse({ ...request, input: items, text })).output_parsed };
  }
  const result = emptyResult();
  for (let turn = 0; turn < MAX_TURNS; turn++) {
    const { answer, deltas } = await oneResponse({ ...request, input: items }, isStreamed(scenario));
    if (deltas !== null) result.deltas.push(deltas);
    result.text.push(answer.output_text);
    const of = (type) => answer.output.filter((item) => item.type === type);
    result.thinking.push(...of("reasoning").map((item) => item.summary.map((part) => part.text).join("")));
    const calls = of("function_call");
    result.calls.push(...calls.map((call) => ({ name: call.name, arguments: JSON.parse(call.arguments) })));
    const { input_tokens: input, input_tokens_details: details, output_tokens: output } = answer.usage;
    result.usage = usageOf(input, details.cached_tokens, output);
    result.finish = answer.incomplete_details?.reason === "max_output_tokens" ? "length" : answer.status;
    if (calls.length === 0) break;
    const outputs = calls.map((call) => ({
      type: "function_call_output",
      call_id: call.call_id,
      output: [{ type: "input_text", text: facts.results[call.name] }],
    }));
    items = [...items, ...answer.output, ...outputs];
  }
  return result;
}

async function oneResponse(request, streams) {
  if (!streams) return { answer: await openai.responses.create(request), deltas: null };
  let deltas = "";
  const stream = openai.responses.stream(request).on("response.output_text.delta", ({ delta }) => (deltas += delta));
  const answer = await stream.finalResponse();
  // The helper hands a failure out as an answer.
  if (answer.status === "failed") throw new Error(`failed: ${answer.error.code}: ${answer.error.message}`);
  return { answer, deltas };
}

await run({ "js-anthropic": messages, "js-chat": chat, "js-responses": responses });
