(() => {
  "use strict";
  const study = JSON.parse(document.getElementById("study").textContent);
  const items = new Map(study.items.map((item) => [item.id, item]));
  const PLACE = `lfi-study:${study.id}`, GAP = 8, BLINK = 200, OTHER = { left: "right", right: "left" };
  const $ = (selector) => document.querySelector(selector);

  // A seeded generator (mulberry32; the seed is an FNV-1a hash), so that a rater meets the same order after a reload.
  const hash = (text) => {
    let h = 2166136261;
    for (const byte of new TextEncoder().encode(text)) h = Math.imul(h ^ byte, 16777619);
    return h >>> 0;
  };
  const generator = (seed) => () => {
    seed = (seed + 0x6d2b79f5) >>> 0;
    let t = Math.imul(seed ^ (seed >>> 15), seed | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  const shuffled = (list, random) => {
    const copy = [...list];
    for (let i = copy.length - 1; i > 0; i--) {
      const j = Math.floor(random() * (i + 1));
      [copy[i], copy[j]] = [copy[j], copy[i]];
    }
    return copy;
  };

  // Every item once, x on the left in half of them; those to be shown again come early, and again late, sides swapped.
  const planned = (seed) => {
    const random = generator(seed), repeated = new Set(study.repeats);
    const order = shuffled([...items.keys()], random);
    const again = order.filter((id) => repeated.has(id)), once = order.filter((id) => !repeated.has(id));
    const split = Math.max(0, Math.ceil(order.length / 2) - again.length);
    const early = shuffled([...again, ...once.slice(0, split)], random);
    const sides = shuffled(order.map((_, i) => (i % 2 ? "left" : "right")), random);
    const plan = [...early, ...once.slice(split)].map((item, i) => ({ item, showing: 1, x_side: sides[i] }));
    for (const item of shuffled(again, random)) {
      const first = plan.findIndex((each) => each.item === item);
      const from = Math.min(Math.max(first + GAP, early.length), plan.length);
      const at = from + Math.floor(random() * (plan.length - from + 1));
      plan.splice(at, 0, { item, showing: 2, x_side: OTHER[plan[first].x_side] });
    }
    return plan;
  };

  // What has been answered outlives a reload.
  let state = null, plan = [], shownAt = 0, stopped = false;
  const keep = () => { try { state ? localStorage.setItem(PLACE, JSON.stringify(state)) : localStorage.removeItem(PLACE); } catch { /* private window */ } };
  const resume = () => {
    try {
      const kept = JSON.parse(localStorage.getItem(PLACE));
      if (!kept || typeof kept.rater !== "string" || !Array.isArray(kept.answers)) return;
      const order = planned(hash(`${study.id}:${kept.rater}`));
      if (kept.answers.length > order.length) return;
      if (!kept.answers.every((a, i) => a.item === order[i].item && a.x_side === order[i].x_side && a.showing === order[i].showing)) return;
      [state, plan] = [kept, order];
    } catch { /* nothing kept, or nothing readable */ }
  };
  const begin = (rater) => {
    const seed = hash(`${study.id}:${rater}`);
    plan = planned(seed);
    state = { rater, seed, started: new Date().toISOString(), answers: [] };
    keep();
    show();
  };

  const show = () => {
    const finished = state && (stopped || state.answers.length === plan.length);
    $("#intro").hidden = Boolean(state);
    $("#trial").hidden = !state || finished;
    $("#end").hidden = !finished;
    scrollTo(0, 0);
    if (!state) {
      if (matchMedia("(hover: hover)").matches) $("#rater").focus();  // on a phone the keyboard would hide the text
    } else if (finished) end();
    else trial();
  };
  const trial = () => {
    const number = state.answers.length, { item: id, x_side } = plan[number], item = items.get(id);
    const image = study.images[item.image];
    $("#word").textContent = item.word;
    $(".stages").style.setProperty("--aspect", image.aspect);
    for (const photo of document.querySelectorAll(".photo")) photo.src = image.source;
    for (const side of ["left", "right"]) $(`[data-answer="${side}"] .heat`).src = x_side === side ? item.x : item.y;
    const bar = $(".done");
    bar.style.width = `${(100 * number) / plan.length}%`;
    bar.setAttribute("aria-valuemax", plan.length);
    bar.setAttribute("aria-valuenow", number);
    $("#count").textContent = `${number + 1} of ${plan.length}`;
    $(".undo").disabled = number === 0;
    $(".stop").hidden = number === 0;
    document.activeElement?.blur();
    shownAt = performance.now();
  };
  const answer = (choice) => {
    const ms = Math.round(performance.now() - shownAt);
    if (ms < BLINK) return;  // the second half of a double tap: nobody has looked yet
    state.answers.push({ ...plan[state.answers.length], answer: choice, ms });
    keep();
    show();
  };
  const undo = () => {
    stopped = false;
    if (state.answers.length) state.answers.pop();
    keep();
    show();
  };

  const sheet = () => JSON.stringify({
    format: "lfi-study-answers", version: 1, study: study.id, rater: state.rater, seed: state.seed,
    started: state.started, saved: new Date().toISOString(), answers: state.answers,
  }, null, 1);
  const end = () => {
    const all = state.answers.length === plan.length;
    $("#end h1").textContent = all ? "Done, thank you!" : "Stopped";
    $("#outcome").textContent = `${state.answers.length} of ${plan.length} answered as “${state.rater}”. Save the file and hand it to whoever asked you.`;
    $(".back").textContent = all ? "Back to the last picture" : "Go on";
    $("#answers").value = sheet();
    $(".told").textContent = "";
    $("#end h1").focus();
  };
  const save = () => {
    const name = state.rater.replace(/[^\p{L}\p{N}_-]+/gu, "-").slice(0, 40);
    const address = URL.createObjectURL(new Blob([sheet() + "\n"], { type: "application/json" }));
    Object.assign(document.createElement("a"), { href: address, download: `study-${study.id}-${name}.json` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 60000);
    $(".told").textContent = "Saved among your downloads.";
  };
  const copy = async () => {
    const text = $("#answers");
    try { await navigator.clipboard.writeText(text.value); } catch {
      $("details").open = true;
      text.select();
      if (!document.execCommand("copy")) { $(".told").textContent = "Please copy the text below by hand."; return; }
    }
    $(".told").textContent = "Copied.";
  };

  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    const rater = $("#rater").value.replace(/\s+/gu, " ").replace(/\p{C}+/gu, "").trim();
    if (rater) begin(rater);
  });
  for (const button of document.querySelectorAll("[data-answer]")) button.addEventListener("click", () => answer(button.dataset.answer));
  $(".undo").addEventListener("click", undo);
  $(".stop").addEventListener("click", () => { stopped = true; show(); });
  $(".save").addEventListener("click", save);
  $(".copy").addEventListener("click", copy);
  $(".back").addEventListener("click", () => { if (stopped && state.answers.length < plan.length) { stopped = false; show(); } else undo(); });
  $(".next").addEventListener("click", () => {
    if (!confirm("Is the file saved? The answers on this page will be cleared.")) return;
    state = null; stopped = false;
    $("#rater").value = "";
    keep();
    show();
  });
  document.addEventListener("keydown", (event) => {
    if ($("#trial").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
    const choice = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "none" }[event.key];
    if (!choice && event.key !== "Backspace") return;
    event.preventDefault();
    if (event.repeat) return;  // a key held down is one answer
    choice ? answer(choice) : undo();
  });

  resume();
  show();
})();
