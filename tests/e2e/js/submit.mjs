// Submit durably, then read the reply: `node submit.mjs nats://127.0.0.1:4222 npc-ai request-1 "Greet the party."`.
import { jetstream } from "@nats-io/jetstream";
import { connect, headers } from "@nats-io/transport-node";

const [server, client, id, prompt] = process.argv.slice(2);
const nc = await connect({ servers: server });

// First listen, then publish: the reply may be quicker than we are.
const replies = nc.subscribe(`llm.res.${client}.${id}`, { max: 1, timeout: 30_000 });
await nc.flush();

const named = headers();
named.set("Llm-Client", client);
named.set("Llm-Request-Id", id);
const accepted = await jetstream(nc).publish(
  "llm.req.code",
  JSON.stringify({ prompt, task: "code", urgency: "high" }),
  { headers: named, msgID: `${client}.${id}` },
);

for await (const msg of replies) {
  const reply = msg.json();
  console.log(JSON.stringify({
    stream: accepted.stream,
    id: msg.headers.get("Llm-Request-Id"),
    status: msg.headers.get("Llm-Status"),
    cost: msg.headers.get("Llm-Cost-Usd"),
    latency: msg.headers.get("Llm-Latency-Ms"),
    content: reply.message?.content,
    total_ms: reply.timings.total_ms,
    error: reply.error,
  }));
}
await nc.drain();
