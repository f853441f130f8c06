// A tool is called by the model and run by OpenAI's own client: node tools.mjs BASE_URL PROMPT
import OpenAI from "openai";

const [baseURL, prompt] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const ran = [];
const runner = client.chat.completions.runTools({
  model: "auto",
  stream: true,
  messages: [{ role: "user", content: prompt }],
  tools: [
    {
      type: "function",
      function: {
        name: "weather",
        parameters: { type: "object", properties: { city: { type: "string" } } },
        parse: JSON.parse,
        function: (asked) => {
          ran.push(asked);
          return "맑음";
        },
      },
    },
  ],
});
console.log(JSON.stringify({ said: await runner.finalContent(), ran }));
