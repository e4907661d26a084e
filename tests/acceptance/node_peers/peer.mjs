// A client of the mesh that knows nothing of Outbid: NATS' own libraries, driven by lines of JSON.
//
//   in   {"call": 1, "op": "request", ...}       one call; calls overlap
//   out  {"call": 1, "result": ...} | {"call": 1, "error": "..."}

import { createInterface } from "node:readline";
import { readFileSync } from "node:fs";
import { connect, credsAuthenticator } from "@nats-io/transport-node";
import { garbage } from "./garbage.mjs";
import { object } from "./objects.mjs";
import { flood, publish, request, sentinel, stream } from "./requests.mjs";
import { discover } from "./services.mjs";

const operations = { discover, flood, garbage, object, publish, request, sentinel, server, stream };

const [url, file] = process.argv.slice(2);
const creds = readFileSync(file);
const jwt = creds.toString().match(/BEGIN NATS USER JWT-----\s+(\S+)/)[1];
const user = JSON.parse(Buffer.from(jwt.split(".")[1], "base64url")).sub;

// Replies are private: nobody may listen to an inbox without the own key in its name.
const nc = await connect({
  servers: url,
  authenticator: credsAuthenticator(creds),
  inboxPrefix: `_INBOX_${user}`,
  name: "a stranger",
  reconnect: false,
});

function server(nc) {
  return { max_payload: nc.info.max_payload, headers: nc.info.headers };
}

async function answer(line) {
  const { call, op, ...given } = JSON.parse(line);
  try {
    return { call, result: await operations[op](nc, given) };
  } catch (error) {
    return { call, error: `${error?.name}: ${error?.message}` };
  }
}

createInterface({ input: process.stdin, crlfDelay: Infinity })
  .on("line", async (line) => process.stdout.write(`${JSON.stringify(await answer(line))}\n`))
  .on("close", async () => {
    await nc.close();
    process.exit(0);
  });
