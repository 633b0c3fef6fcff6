(() => {
  "use strict";
  const root = document.documentElement;
  root.classList.add("js");

  // Theme: what the system says until the reader says otherwise.
  const stored = () => { try { return localStorage.getItem("lfi-theme"); } catch { return null; } };
  const system = matchMedia("(prefers-color-scheme: dark)");
  const wanted = new URLSearchParams(location.search).get("theme") || stored();
  if (wanted === "dark" || wanted === "light") root.dataset.theme = wanted;
  document.querySelector(".theme").addEventListener("click", () => {
    const now = root.dataset.theme || (system.matches ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
    try { localStorage.setItem("lfi-theme", root.dataset.theme); } catch { /* private window */ }
  });

  // Charts: a readout that follows the pointer, or the arrow keys.
  const NS = "http://www.w3.org/2000/svg";
  for (const svg of document.querySelectorAll("svg[data-readout]")) {
    const { at, series } = JSON.parse(svg.dataset.readout);
    if (!at.length) continue;
    const plot = svg.parentElement;
    let line = null, tip = null, index = -1;
    const hide = () => { line?.remove(); tip?.remove(); line = tip = null; };
    const show = (i) => {
      index = Math.max(0, Math.min(at.length - 1, i));
      if (!line) {
        line = document.createElementNS(NS, "line");
        line.setAttribute("class", "cursor");
        line.setAttribute("y1", 14); line.setAttribute("y2", 264);
        svg.append(line);
        tip = document.createElement("div");
        tip.className = "tip"; tip.setAttribute("role", "status");
        plot.append(tip);
      }
      const [x, text] = at[index];
      line.setAttribute("x1", x); line.setAttribute("x2", x);
      tip.replaceChildren(Object.assign(document.createElement("b"), { textContent: text }));
      const rows = series.filter((s) => s.y[index] !== null).sort((a, b) => parseFloat(b.y[index]) - parseFloat(a.y[index]));
      for (const s of rows) {
        const row = document.createElement("span");
        row.append(Object.assign(document.createElement("span"), { textContent: s.label }), s.y[index]);
        tip.append(row);
      }
      const box = svg.getBoundingClientRect(), left = x / svg.viewBox.baseVal.width * box.width;
      const flip = left + 14 + tip.offsetWidth > plot.clientWidth;
      tip.style.left = `${Math.max(0, flip ? left - tip.offsetWidth - 12 : left + 12)}px`;
    };
    const follow = (event) => {
      const box = svg.getBoundingClientRect();
      const x = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
      let best = 0;
      at.forEach(([p], i) => { if (Math.abs(p - x) < Math.abs(at[best][0] - x)) best = i; });
      show(best);
    };
    svg.addEventListener("pointermove", follow);
    svg.addEventListener("pointerdown", follow);
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("blur", hide);
    svg.addEventListener("keydown", (event) => {
      if (event.key === "Escape") return hide();
      const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!move) return;
      event.preventDefault();
      show(index < 0 ? (move > 0 ? 0 : at.length - 1) : index + move);
    });
  }

  // Gallery.
  const source = document.getElementById("gallery-data");
  if (!source) return;
  const { depths, ramp, samples } = JSON.parse(source.textContent);
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const colours = bytes(ramp);
  const tools = document.querySelector(".tools");
  const holder = document.querySelector(".cards");
  const cards = [...holder.querySelectorAll(".card")];
  const last = Math.max(0, ...samples.flatMap((s) => s.students.map((one) => one.shape[0] - 1)));
  // `tap` is the depth that was chosen, `at` the place between two depths that is drawn on the way there.
  const state = { run: 0, tap: last, at: last, overlay: "heat", order: "mixed" };
  const SIZE = 112;

  // Cubic (Catmull-Rom) enlargement of one grid to SIZE x SIZE, one axis at a time, clamped to [0, 255].
  const weights = (t) => [((-t + 2) * t - 1) * t / 2, ((3 * t - 5) * t * t + 2) / 2, ((-3 * t + 4) * t + 1) * t / 2, (t - 1) * t * t / 2];
  const stretch = (values, count, stride, lines, lineStride, out, outStride, outLine) => {
    for (let i = 0; i < SIZE; i++) {
      const at = (i + 0.5) * count / SIZE - 0.5, base = Math.floor(at), w = weights(at - base);
      for (let l = 0; l < lines; l++) {
        let sum = 0;
        for (let k = 0; k < 4; k++) sum += w[k] * values[Math.max(0, Math.min(count - 1, base + k - 1)) * stride + l * lineStride];
        out[i * outStride + l * outLine] = Math.max(0, Math.min(255, sum));
      }
    }
  };
  const paint = (canvas, grid, rows, columns) => {
    const half = new Float32Array(rows * SIZE), full = new Float32Array(SIZE * SIZE);
    stretch(grid, columns, 1, rows, columns, half, 1, SIZE);
    stretch(half, rows, SIZE, SIZE, 1, full, SIZE, 1);
    const context = canvas.getContext("2d"), picture = context.createImageData(SIZE, SIZE);
    full.forEach((value, i) => {
      if (state.overlay === "spot") picture.data[4 * i + 3] = 232 * (1 - value / 255);
      else for (let c = 0; c < 4; c++) picture.data[4 * i + c] = colours[4 * Math.round(value) + c];
    });
    context.putImageData(picture, 0, 0);
  };
  const unpack = (maps) => { maps.bytes ??= bytes(maps.grids); return maps; };
  const mapOf = (maps, tap, word) => {
    const { shape, bytes: all, peaks } = unpack(maps);
    const [rows, columns] = shape.slice(-2);
    const place = (shape.length === 4 ? tap * shape[1] : 0) + word, cells = rows * columns;
    return { grid: all.subarray(place * cells, (place + 1) * cells), rows, columns, peak: peaks[place] };
  };
  const studentOf = (sample) => sample.students.find((s) => s.run === state.run);
  const camOf = (sample) => sample.cams.find((s) => s.run === state.run);
  const tapOf = (student, tap) => Math.min(tap, student.shape[0] - 1);
  // A map between two depths: what both say, in shares. The ring and the verdict are of the nearer one.
  const between = (maps, at, word) => {
    const low = Math.floor(at), share = at - low, near = mapOf(maps, Math.round(at), word);
    if (!share) return near;
    const first = mapOf(maps, low, word).grid, second = mapOf(maps, low + 1, word).grid;
    return { ...near, grid: Float32Array.from(first, (value, i) => value + share * (second[i] - value)) };
  };
  const marksOf = (sample, tap) => {
    const student = studentOf(sample);
    if (student) return student.correct[tapOf(student, tap)] || [];
    return camOf(sample)?.correct || (sample.students.length ? [] : sample.teacher?.correct || []);
  };
  const kind = (correct) => (correct === true ? "hit" : correct === false ? "miss" : "");
  const TEXT = { hit: "✓ hit", miss: "✗ miss", "": "no mask" };
  const depthName = (tap) => depths[tap] || `tap ${tap + 1}`;

  const fill = (view, { grid, rows, columns, peak }, correct, who) => {
    const stage = view.querySelector(".stage");
    let canvas = stage.querySelector("canvas");
    if (!canvas) {
      canvas = Object.assign(document.createElement("canvas"), { width: SIZE, height: SIZE, className: "heat" });
      stage.querySelector("img.heat")?.remove();
      stage.querySelector(".photo").after(canvas);
    }
    paint(canvas, grid, rows, columns);
    const ring = stage.querySelector(".peak");
    ring.className = `peak ${kind(correct)}`;
    ring.style.left = `${peak[0]}%`; ring.style.top = `${peak[1]}%`;
    view.querySelector(".who").textContent = who;
    const verdict = view.querySelector(".verdict");
    verdict.className = `verdict ${kind(correct) || "unknown"}`;
    verdict.textContent = TEXT[kind(correct)];
  };
  const draw = (card, moving = false) => {
    const sample = samples[card.dataset.sample], marks = marksOf(sample, state.tap);
    let word = 0;
    for (const button of card.querySelectorAll(".word")) {
      const mark = kind(marks[button.dataset.word]);
      button.className = `word ${mark}`;
      if (button.getAttribute("aria-pressed") === "true") word = Number(button.dataset.word);
    }
    if (!moving && sample.teacher) fill(card.querySelector('[data-role="teacher"]'), mapOf(sample.teacher, 0, word), sample.teacher.correct[word], "Teacher");
    const cam = card.querySelector('[data-role="cam"]'), classMap = camOf(sample);
    if (cam && !moving) {
      cam.hidden = !classMap;
      if (classMap) fill(cam, mapOf(classMap, 0, word), classMap.correct[word], "Class map");
      cam.classList.toggle("nothing", !!classMap && !classMap.named[word]);
      if (classMap && !classMap.named[word]) cam.querySelector(".verdict").textContent = "no class";
    }
    const student = studentOf(sample);
    const views = [...card.querySelectorAll('[data-role="student"]')];
    if (!views.length) return;
    const wide = card.classList.contains("wide") && student;
    if (wide && moving) return;
    const taps = wide ? [...Array(student.shape[0]).keys()] : student ? [tapOf(student, state.at)] : [];
    while (views.length > Math.max(1, taps.length)) views.pop().remove();
    while (views.length < taps.length) {
      const copy = views[0].cloneNode(true);
      copy.querySelector("canvas")?.remove();
      views.at(-1).after(copy); views.push(copy);
    }
    views[0].hidden = !student;
    taps.forEach((at, i) => {
      const tap = Math.round(at);
      fill(views[i], between(student, at, word), student.correct[tap]?.[word], `Student, ${depthName(tap)}`);
    });
  };
  const press = (card, word) => {
    for (const button of card.querySelectorAll(".word")) button.setAttribute("aria-pressed", String(Number(button.dataset.word) === word));
  };
  // Order and filter follow the last depth, so that no card jumps away while the slider moves.
  const arrange = (pickMisses) => {
    const ranked = [];
    for (const card of cards) {
      const sample = samples[card.dataset.sample], marks = marksOf(sample, last), missed = marks.indexOf(false);
      card.hidden = (state.order === "miss" && missed < 0) || (sample.students.length + sample.cams.length > 0 && !studentOf(sample) && !camOf(sample));
      if (pickMisses && state.order !== "mixed" && missed >= 0) press(card, missed);
      ranked.push([marks.filter((m) => m === true).length - marks.filter((m) => m === false).length, Number(card.dataset.sample), card]);
    }
    ranked.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
    if (state.order === "mixed") { // the worst, the best, the second worst, ...
      for (let i = 1; i < ranked.length; i += 2) ranked.splice(i, 0, ranked.pop());
    }
    holder.append(...ranked.map((r) => r[2]));
    document.querySelector(".empty").hidden = cards.some((card) => !card.hidden);
  };
  const update = () => {
    holder.dataset.overlay = state.overlay;
    let hits = 0, known = 0;
    const shown = cards.filter((card) => !card.hidden);
    for (const card of shown) {
      const marks = marksOf(samples[card.dataset.sample], state.tap);
      hits += marks.filter((m) => m === true).length;
      known += marks.filter((m) => m !== null).length;
      draw(card);
    }
    document.querySelector(".count").textContent = `${shown.length} of ${cards.length} images` + (known ? `, ${hits} of ${known} words hit` : "");
  };

  // The slider over the depths: maps travel to the depth that was chosen.
  const slider = document.querySelector('input[name="tap"]'), play = document.querySelector(".play");
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  let frame = 0, timer = 0;
  const travel = (tap) => {
    cancelAnimationFrame(frame);
    const from = state.at, began = performance.now(), lasts = still.matches ? 0 : 450;
    state.tap = tap;
    slider.value = String(tap);
    slider.setAttribute("aria-valuetext", depthName(tap));
    const step = () => {
      const t = lasts ? Math.min(1, (performance.now() - began) / lasts) : 1;
      state.at = t < 1 ? from + (tap - from) * t * t * (3 - 2 * t) : tap;
      if (t === 1) return update();
      for (const card of cards) if (!card.hidden) draw(card, true);
      frame = requestAnimationFrame(step);
    };
    step();
  };
  const pause = () => { clearInterval(timer); timer = 0; play.setAttribute("aria-pressed", "false"); };
  if (slider) {
    slider.setAttribute("aria-valuetext", depthName(last));
    slider.addEventListener("input", () => { pause(); travel(Number(slider.value)); });
    play.addEventListener("click", () => {
      if (timer) return pause();
      const next = () => travel(state.tap === last ? 0 : state.tap + 1);
      play.setAttribute("aria-pressed", "true");
      next();
      timer = setInterval(next, 1300);
    });
  }

  tools.addEventListener("submit", (event) => event.preventDefault());
  tools.addEventListener("change", (event) => {
    const { name, value } = event.target;
    state[name] = name === "run" ? Number(value) : value;
    if (name !== "overlay") arrange(name === "order");
    update();
  });
  holder.addEventListener("click", (event) => {
    const card = event.target.closest(".card");
    const word = event.target.closest(".word"), more = event.target.closest(".more");
    if (word) press(card, Number(word.dataset.word));
    if (more) {
      const wide = card.classList.toggle("wide");
      more.setAttribute("aria-expanded", String(wide));
      more.textContent = wide ? "One depth" : "All depths";
    }
    if (word || more) draw(card);
  });
  // Arrow keys move through the words of a caption.
  holder.addEventListener("keydown", (event) => {
    const word = event.target.closest(".word"), move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!word || !move) return;
    event.preventDefault();
    const card = word.closest(".card"), words = [...card.querySelectorAll(".word")];
    const next = words[(words.indexOf(word) + move + words.length) % words.length];
    press(card, Number(next.dataset.word));
    next.focus();
    draw(card);
  });
  tools.reset();
  if (slider) slider.value = String(last);
  arrange(false);
  update();
})();
