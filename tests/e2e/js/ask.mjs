// Ask in one line: `node ask.mjs nats://127.0.0.1:4222 "Write a function."` prints the answer and what it cost.
import { connect } from "@nats-io/transport-node";

const [server, prompt] = process.argv.slice(2);
const nc = await connect({ servers: server });
const msg = await nc.request("llm.ask.code", prompt, { timeout: 30_000 });
const reply = msg.json();
console.log(JSON.stringify({
  status: msg.headers.get("Llm-Status"),
  cost: msg.headers.get("Llm-Cost-Usd"),
  latency: msg.headers.get("Llm-Latency-Ms"),
  content: reply.message?.content,
  error: reply.error,
}));
await nc.drain();
