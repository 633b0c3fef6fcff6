// Uses the report as a reader would and leaves what it saw in <html data-found>; `wrong` is of the page.
const found = { width: innerWidth };
const done = () => { document.documentElement.dataset.found = JSON.stringify({ ...found, wrong }); };
const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const card = () => [...document.querySelectorAll(".card")].find((one) => !one.hidden);
const look = (one) => {
  const picture = one.querySelector('[data-role="student"] canvas').toDataURL();
  const ring = one.querySelector('[data-role="student"] .peak');
  const who = one.querySelector('[data-role="student"] .who').textContent;
  return { picture, who, ring: ring.style.left + ring.style.top };
};
(async () => {
  const slider = document.querySelector('input[name="tap"]'), first = card();
  found.last = look(first);
  const slide = async (to) => {
    slider.value = to;
    slider.dispatchEvent(new Event("input", { bubbles: true }));
    await wait(50);
  };
  await slide("0");
  found.first = look(first);
  found.spoken = slider.getAttribute("aria-valuetext");
  await slide(slider.max);
  found.again = look(first);
  const words = [...first.querySelectorAll(".word")];
  const pressed = () => words.findIndex((word) => word.getAttribute("aria-pressed") === "true");
  const at = pressed();
  words[at].dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true, cancelable: true }));
  found.words = words.length;
  found.moved = (pressed() - at + words.length) % words.length;
  found.other = look(first);
  const count = (one, kind) => one.querySelectorAll(`.word.${kind}`).length;
  const hits = (one) => count(one, "hit") - count(one, "miss");
  const order = () => [...document.querySelectorAll(".card")].filter((one) => !one.hidden).map(hits);
  found.mixed = order();
  for (const kind of ["worst", "miss"]) {
    document.querySelector(`input[name="order"][value="${kind}"]`).click();
    found[kind] = order();
  }
  const run = document.querySelector('select[name="run"]');
  found.runs = run.options.length;
  run.value = String(run.options.length - 1);
  run.dispatchEvent(new Event("change", { bubbles: true }));
  document.querySelector('input[name="order"][value="mixed"]').click();
  const other = card(), seen = (role) => other.querySelector(`[data-role="${role}"]`).offsetWidth > 0;
  const named = [...other.querySelectorAll(".word")].sort((a, b) => a.dataset.word - b.dataset.word).map((word) => {
    word.click();
    return other.querySelector('[data-role="cam"] .verdict').textContent;
  });
  found.control = { student: seen("student"), cam: seen("cam"), named };
  run.value = "0";
  run.dispatchEvent(new Event("change", { bubbles: true }));
  document.querySelector(".play").click();
  await wait(100);
  found.playing = slider.value;
  await wait(1500);
  found.played = slider.value;
  document.querySelector(".play").click();
  document.querySelector(".theme").click();
  found.theme = document.documentElement.dataset.theme;
  const frames = [...document.querySelectorAll(".framed")];
  found.overflow = document.documentElement.scrollWidth - innerWidth;
  const frame = frames.reduce((a, b) => (a.scrollWidth >= b.scrollWidth ? a : b));
  frame.style.maxHeight = "9rem";
  frame.scrollTop = 30; frame.scrollLeft = 60;
  const outer = frame.getBoundingClientRect(), box = (selector) => frame.querySelector(selector).getBoundingClientRect();
  found.sticky = [box("thead th").top - outer.top, box("tbody th").left - outer.left];
  found.scrolled = [frame.scrollTop, frame.scrollLeft];
  done();
})().catch((error) => { wrong.push(String(error)); done(); });
