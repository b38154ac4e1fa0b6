// What the scripts share: jobs come as JSON on standard input, results go as JSON to standard output.
import { readFileSync, writeSync } from "node:fs";

const JOBS_AT_ONCE = 4;
const MAX_TURNS = 4;

export const { base_url: baseUrl, key, facts, jobs } = JSON.parse(readFileSync(0, "utf8"));
export { MAX_TURNS };

export const hasTools = (scenario) => /^(tools|parallel|thinking)/.test(scenario);
export const isStreamed = (scenario) => scenario.endsWith("streamed") || ["broken", "cut"].includes(scenario);
export const emptyResult = () => ({ text: [], deltas: [], thinking: [], calls: [], usage: {}, finish: "" });
export const usageOf = (input, cached, output) => ({ input, cached: cached ?? 0, output });

const failure = (error) => ({
  kind: error.constructor.name,
  status: error.status ?? error.statusCode ?? null,
  message: String(error.message),
});

// Runs all jobs; `drive` maps the name of a client to a function of scenario and model.
export async function run(drive) {
  const results = {};
  const waiting = [...jobs];
  const work = async () => {
    for (let job = waiting.shift(); job; job = waiting.shift()) {
      try {
        results[job.id] = await drive[job.client](job.scenario, job.model);
      } catch (error) {
        results[job.id] = { error: failure(error) };
      }
    }
  };
  await Promise.all(Array.from({ length: JOBS_AT_ONCE }, work));
  writeSync(1, JSON.stringify(results));
}
