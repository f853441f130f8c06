// What OpenAI's own client makes of the edge: node ask.mjs BASE_URL PROMPT
import OpenAI from "openai";

const [baseURL, prompt] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: prompt }];

const whole = await client.chat.completions.create({ model: "auto", messages });

let streamed = "";
for await (const chunk of await client.chat.completions.create({ model: "auto", messages, stream: true })) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
}

const response = await client.responses.create({ model: "auto", input: prompt });
const events = [];
const stream = client.responses.stream({ model: "auto", input: prompt });
for await (const event of stream) events.push(event.type);
const final = await stream.finalResponse();

const ids = [];
for await (const model of client.models.list()) ids.push(model.id);

let refused;
try {
  await client.chat.completions.create({ model: "nobody", messages });
} catch (error) {
  refused = { name: error.constructor.name, status: error.status, code: error.code, param: error.param };
}

console.log(
  JSON.stringify({
    whole: whole.choices[0].message.content,
    streamed,
    response: response.output_text,
    final: final.output[0].content[0].text,
    last: events.at(-1),
    ids,
    refused,
  }),
);
