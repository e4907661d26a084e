// Messages that mean nothing, or nearly something: random bytes, and good messages damaged. The same for one seed.

import { createInbox } from "@nats-io/transport-node";
import { described } from "./body.mjs";

function generator(seed) {
  // mulberry32, public domain (Tommy Ettinger, 2017)
  let state = seed >>> 0;
  return (below) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) % below;
  };
}

function noise(next) {
  return Uint8Array.from({ length: next(200) }, () => next(256));
}

function damaged(good, next) {
  const bytes = Uint8Array.from(good);
  const kind = next(3);
  if (kind === 0) return bytes.slice(0, next(bytes.length));
  if (kind === 1) return Uint8Array.from([...bytes, ...noise(next)]);
  for (let n = 1 + next(4); n > 0; n--) bytes[next(bytes.length)] = next(256);
  return bytes;
}

// `targets`: [{subject, good: [base64, ...]}]. Sends `count` to each, answers {subject: {codes, unanswered}}.
export async function garbage(nc, given) {
  const next = generator(given.seed);
  const found = {};
  for (const { subject, good } of given.targets) {
    const seeds = (good ?? []).map((text) => Buffer.from(text, "base64"));
    const sent = Array.from({ length: given.count }, () => {
      const seed = next(seeds.length + 1);
      return seed === 0 ? noise(next) : damaged(seeds[seed - 1], next);
    });
    found[subject] = await fire(nc, subject, sent, given.wait_ms ?? 400);
  }
  return found;
}

async function fire(nc, subject, sent, wait_ms) {
  const inbox = createInbox(nc.options.inboxPrefix);
  const codes = {};
  const answered = new Set();
  let last = Date.now();
  const subscription = nc.subscribe(`${inbox}.*`, {
    callback: (_, msg) => {
      last = Date.now();
      answered.add(msg.subject);
      const code = codeOf(msg);
      codes[code] = (codes[code] ?? 0) + 1;
    },
  });
  sent.forEach((data, n) => nc.publish(subject, data, { reply: `${inbox}.${n}` }));
  await nc.flush();
  while (answered.size < sent.length && Date.now() - last < wait_ms) await new Promise((done) => setTimeout(done, 10));
  subscription.unsubscribe();
  const unanswered = sent.filter((_, n) => !answered.has(`${inbox}.${n}`)).map((data) => Buffer.from(data).toString("hex"));
  return { codes, unanswered };
}

function codeOf(msg) {
  if (msg.headers?.code === 503) return "no responders";
  const type = msg.headers?.get("Content-Type") || "application/msgpack"; // nodes among themselves
  try {
    return described(msg, type).headers["Outbid-Error"] ?? "ok";
  } catch {
    return "unreadable reply";
  }
}
