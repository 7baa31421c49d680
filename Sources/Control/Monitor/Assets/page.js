// Asks the server every two seconds and shows what it says; nothing can be changed from here.

import { bytes, DiskMap, element } from "./map.js";

const pauseMilliseconds = 2000;
const rateSeconds = 30;
const eventsShown = 200;
const openAtFirst = 2;

const byID = (name) => document.getElementById(name);

function duration(seconds) {
  if (!Number.isFinite(seconds) || seconds < 0) return "-";
  const whole = Math.round(seconds);
  const days = Math.floor(whole / 86400);
  const hours = Math.floor(whole / 3600) % 24;
  const minutes = Math.floor(whole / 60) % 60;
  if (days > 0) return `${days} d ${hours} h`;
  if (hours > 0) return `${hours} h ${minutes} min`;
  return minutes > 0 ? `${minutes} min ${whole % 60} s` : `${whole} s`;
}

function clock(text) {
  const time = new Date(text);
  const isToday = time.toDateString() === new Date().toDateString();
  return isToday ? time.toLocaleTimeString() : time.toLocaleString();
}

function put(node, text) { if (node.textContent !== text) node.textContent = text; }

function setClass(node, text) { if (node.className !== text) node.className = text; }

// Brings the children of `parent` in step with `items`: one view for each key, in their order.
function reconcile(parent, views, items, key, make) {
  const kept = new Set();
  items.forEach((item, index) => {
    const name = key(item);
    kept.add(name);
    if (!views.has(name)) views.set(name, make(item));
    const view = views.get(name);
    view.update(item);
    if (parent.children[index] !== view.root) parent.insertBefore(view.root, parent.children[index] || null);
  });
  for (const [name, view] of views) {
    if (!kept.has(name)) { view.root.remove(); views.delete(name); }
  }
}

class Meter {
  constructor() {
    this.label = element("span", {});
    this.bar = element("progress", { max: "1", value: "0" });
    this.note = element("p", { class: "small soft" });
    this.root = element("div", { class: "meter" }, this.label, this.bar, this.note);
  }

  set(label, share, note, kind = "") {
    put(this.label, label);
    this.bar.setAttribute("aria-label", `${label}: ${note}`);
    this.bar.value = Math.min(Math.max(share || 0, 0), 1);
    setClass(this.bar, kind);
    put(this.note, note);
  }
}

class JobDiskView {
  constructor() {
    this.read = new Meter();
    this.scratch = new Meter();
    this.root = element("div", {}, this.read.root, this.scratch.root);
  }

  update(disk) {
    const kind = disk.incremental ? "incremental" : "full";
    this.read.set(
      disk.disk, disk.bytesToRead > 0 ? disk.bytesRead / disk.bytesToRead : 1,
      `${bytes(disk.bytesRead)} of ${bytes(disk.bytesToRead)} read (${kind})`);
    const free = disk.scratchFree === undefined ? "" : `, ${bytes(disk.scratchFree)} free`;
    this.scratch.set(
      "scratch", disk.scratchLimit > 0 ? disk.scratchUsed / disk.scratchLimit : 0,
      `${bytes(disk.scratchUsed)} of ${bytes(disk.scratchLimit)} used${free}`, "scratch");
  }
}

class JobView {
  constructor() {
    this.title = element("h3");
    this.state = element("span", { class: "pill" });
    this.facts = element("p", { class: "small soft" });
    this.rate = element("p", { class: "small" });
    this.problem = element("p", { class: "problem" });
    this.disks = element("div");
    this.views = new Map();
    this.samples = [];
    this.root = element(
      "article", { class: "card" }, element("div", { class: "row" }, this.title, this.state),
      this.facts, this.problem, this.disks, this.rate);
  }

  update(job) {
    put(this.title, job.domain);
    put(this.state, job.state);
    setClass(this.state, `pill ${job.state === "broken" ? "bad" : "good"}`);
    put(this.problem, job.errorMessage || "");
    const facts = [`since ${clock(job.begun)}`, people(job.clients)];
    if (job.tls) facts.push("TLS");
    if (job.checkpoint) facts.push(`checkpoint ${job.checkpoint}`);
    if (job.expires) facts.push(`ends by itself at ${clock(job.expires)}`);
    if (job.clients === 0 && job.idleSeconds > 60) facts.push(`idle for ${duration(job.idleSeconds)}`);
    if (job.holdNanoseconds !== undefined) {
      facts.push(`writes held for ${(job.holdNanoseconds / 1e6).toFixed(1)} ms`);
    }
    put(this.facts, facts.join(" · "));
    this.root.title = job.id;
    reconcile(this.disks, this.views, job.disks, (disk) => disk.disk, () => new JobDiskView());
    put(this.rate, this.pace(job));
  }

  pace(job) {
    const read = job.disks.reduce((sum, disk) => sum + Math.min(disk.bytesRead, disk.bytesToRead), 0);
    const all = job.disks.reduce((sum, disk) => sum + disk.bytesToRead, 0);
    const now = performance.now() / 1000;
    this.samples.push({ now, read });
    while (this.samples.length > 2 && now - this.samples[0].now > rateSeconds) this.samples.shift();
    if (all > 0 && read >= all) return "everything is read";
    const first = this.samples[0];
    if (now - first.now < 1) return "";
    const rate = (read - first.read) / (now - first.now);
    if (rate <= 0) return job.clients > 0 ? "nothing is being read" : "";
    return `${bytes(rate)}/s, ${duration((all - read) / rate)} left`;
  }
}

class DiskView {
  constructor(domain, disk) {
    this.domain = domain;
    this.disk = disk.disk;
    this.title = element("h3");
    this.facts = element("p", { class: "small soft" });
    this.problem = element("p", { class: "problem" });
    this.state = element("span", { class: "pill" });
    this.map = new DiskMap(`disk ${disk.disk} of ${domain}`);
    this.isServed = false;
    this.last = null;
    this.root = element(
      "div", { class: "disk" }, element("div", { class: "row" }, this.title, this.state),
      this.facts, this.problem, this.map.root);
  }

  update(disk) {
    this.isServed = disk.size !== undefined;
    put(this.title, disk.disk);
    const state = !this.isServed
      ? (disk.errorMessage ? ["not served", "bad"] : ["empty", "soft"])
      : disk.clients > 0 ? ["in use", "good"] : ["no machine", "soft"];
    put(this.state, state[0]);
    setClass(this.state, `pill ${state[1]}`);
    const facts = [this.isServed ? bytes(disk.size) : disk.device];
    if (disk.readOnly) facts.push("read only");
    if (disk.vhostSocket) facts.push(`vhost-user at ${disk.vhostSocket}`);
    if (disk.clients > 0) facts.push(people(disk.clients));
    if (disk.checkpoints && disk.checkpoints.length > 0) {
      facts.push(`${bytes(disk.dirtyBytes)} changed since ${disk.checkpoints.at(-1)}`);
    }
    const pace = this.pace(disk);
    if (pace) facts.push(pace);
    put(this.facts, facts.join(" · "));
    put(this.problem, disk.errorMessage || disk.trackingProblem || "");
    this.map.root.hidden = !this.isServed;
  }

  pace(disk) {
    const now = performance.now() / 1000;
    const last = this.last;
    this.last = { now, read: disk.readBytes, written: disk.writtenBytes };
    if (!last || disk.readBytes === undefined || now - last.now < 0.5) return "";
    const per = (before, after) => `${bytes(Math.max(after - before, 0) / (now - last.now))}/s`;
    return `the machine reads ${per(last.read, disk.readBytes)}, writes ${per(last.written, disk.writtenBytes)}`;
  }

  async look() {
    const path = `v1/domains/${encodeURIComponent(this.domain)}/disks/${encodeURIComponent(this.disk)}/map`;
    const answer = await fetch(path, { signal: AbortSignal.timeout(20000) });
    if (answer.ok) this.map.show(await answer.json()); else this.map.fail((await answer.text()).trim());
  }
}

class DomainView {
  constructor(domain, isOpen) {
    this.name = domain.domain;
    this.title = element("h3");
    this.facts = element("span", { class: "small soft" });
    this.state = element("span", { class: "small" });
    this.disks = element("div");
    this.views = new Map();
    this.root = element(
      "details", {}, element("summary", {}, element("span", { class: "row" }, this.title, this.facts, this.state)),
      this.disks);
    this.root.open = isOpen;
    this.root.addEventListener("toggle", () => { if (this.root.open) this.look(); });
  }

  update(domain) {
    put(this.title, domain.domain);
    const served = domain.disks.filter((disk) => disk.size !== undefined);
    const size = served.reduce((sum, disk) => sum + disk.size, 0);
    put(this.facts, `${several(domain.disks.length, "disk")}, ${bytes(size)}`);
    const failed = domain.disks.some((disk) => disk.errorMessage);
    const success = domain.lastSuccess ? Date.parse(domain.lastSuccess) : 0;
    const failure = domain.lastFailure ? Date.parse(domain.lastFailure) : 0;
    let state = ["no backup yet", "soft"];
    if (success > 0) state = [`last backup ${clock(domain.lastSuccess)}`, "good"];
    if (failure > success) state = [`backup failed ${clock(domain.lastFailure)}`, "bad"];
    if (failed) state = ["a disk is not served", "bad"];
    put(this.state, state[0]);
    setClass(this.state, `small ${state[1]}`);
    reconcile(
      this.disks, this.views, domain.disks, (disk) => disk.disk,
      (disk) => new DiskView(domain.domain, disk));
  }

  async look() {
    for (const view of this.views.values()) {
      if (!view.isServed) continue;
      try { await view.look(); } catch (error) { view.map.fail(`no answer: ${error.message}`); }
    }
  }
}

class PastView {
  constructor(past) {
    const took = past.begun && past.ended ? (Date.parse(past.ended) - Date.parse(past.begun)) / 1000 : NaN;
    const outcome = element("td", {}, element("span", { class: past.success ? "good" : "bad" }, past.outcome));
    this.root = element(
      "tr", { title: past.id }, element("td", {}, past.ended ? clock(past.ended) : "-"),
      element("td", {}, past.domain), outcome, element("td", {}, duration(took)),
      element("td", {}, past.bytesRead === undefined ? "" : bytes(past.bytesRead)),
      element("td", {}, past.checkpoint || ""), element("td", {}, past.errorMessage || ""));
  }

  update() {}
}

function several(count, thing) {
  return count === 0 ? `no ${thing}` : count === 1 ? `1 ${thing}` : `${count} ${thing}s`;
}

function people(count) { return several(count, "client"); }

const jobs = new Map();
const domains = new Map();
const past = new Map();
let lastEvent = 0;
let lastStart = null;
let lastAnswer = null;

function section(name, isEmpty) {
  byID(name).querySelector(".empty").hidden = !isEmpty;
}

function show(overview) {
  const { server } = overview;
  const failed = overview.domains.some((domain) => domain.disks.some((disk) => disk.errorMessage));
  const isGood = server.ready && !failed;
  put(byID("status"), isGood ? "ready" : "degraded");
  setClass(byID("status"), `pill ${isGood ? "good" : "warn"}`);
  put(
    byID("server"),
    `${server.version} · up ${duration((Date.parse(server.now) - Date.parse(server.started)) / 1000)}`);
  byID("problems").hidden = server.problems.length === 0;
  byID("problems").querySelector("ul").replaceChildren(
    ...server.problems.map((problem) => element("li", { class: "problem" }, problem)));
  if (server.started !== lastStart) { lastStart = server.started; lastEvent = 0; byID("events").querySelector("ol").replaceChildren(); }
  reconcile(byID("jobs").querySelector(".cards"), jobs, overview.jobs, (job) => job.id, () => new JobView());
  section("jobs", overview.jobs.length === 0);
  const busy = new Set(overview.jobs.map((job) => job.domain));
  reconcile(
    byID("domains").querySelector(".list"), domains, overview.domains, (domain) => domain.uuid,
    (domain) => new DomainView(
      domain, domains.size < openAtFirst || (busy.has(domain.domain) && domains.size < 8)));
  section("domains", overview.domains.length === 0);
  byID("find").hidden = overview.domains.length < 8;
  filter();
  reconcile(byID("history").querySelector("tbody"), past, overview.history, (job) => job.id, (job) => new PastView(job));
  section("history", overview.history.length === 0);
  byID("history").querySelector(".scroll").hidden = overview.history.length === 0;
}

function filter() {
  const wanted = byID("find").querySelector("input").value.toLowerCase();
  for (const view of domains.values()) view.root.hidden = !view.name.toLowerCase().includes(wanted);
}

function showEvents(events) {
  const list = byID("events").querySelector("ol");
  for (const event of events) {
    if (event.sequence <= lastEvent) continue;
    lastEvent = event.sequence;
    const facts = [event.event];
    for (const [name, value] of [["domain", event.domain], ["disk", event.disk], ["job", event.id]]) {
      if (value) facts.push(`${name}=${value}`);
    }
    if (event.message) facts.push(`: ${event.message}`);
    const time = element("time", { datetime: event.time, class: "soft" }, `${clock(event.time)} `);
    list.prepend(element("li", {}, time, facts.join(" ")));
  }
  while (list.children.length > eventsShown) list.lastElementChild.remove();
  section("events", list.children.length === 0);
  list.hidden = list.children.length === 0;
}

async function ask(path) {
  const answer = await fetch(path, { signal: AbortSignal.timeout(20000) });
  if (!answer.ok) throw new Error((await answer.text()).trim() || `status ${answer.status}`);
  return answer.json();
}

async function round() {
  try {
    const overview = await ask("v1/overview");
    lastAnswer = new Date();
    show(overview);
    if (overview.server.events !== lastEvent) showEvents((await ask(`v1/events?since=${lastEvent}`)).events);
    for (const view of domains.values()) if (view.root.open && !view.root.hidden) await view.look();
  } catch (error) {
    const since = lastAnswer ? ` since ${lastAnswer.toLocaleTimeString()}` : "";
    put(byID("status"), `no answer${since}`);
    byID("status").title = error.message;
    setClass(byID("status"), "pill bad");
  }
}

// A page that nobody sees asks nothing.
async function run() {
  for (;;) {
    if (document.visibilityState === "visible") await round();
    await new Promise((go) => { setTimeout(go, pauseMilliseconds); });
  }
}

byID("find").querySelector("input").addEventListener("input", filter);
run();
