"use strict";
(() => {
  const report = JSON.parse(document.getElementById("report").textContent);
  const tip = document.getElementById("tip");
  const statuses = ["match", "suspect", "mismatch"];

  // As in html.py; null is infinite or not a number.
  const short = (value) => {
    if (value === null) return "∞";
    const size = Math.abs(value);
    if (size && (size < 0.001 || size >= 999.5)) return value.toExponential(2).replace("e+", "e");
    return String(Number(value.toPrecision(3)));
  };
  const own = (layer) =>
    layer.introduced === null && !layer.introduces ? "not run alone" : short(layer.introduced);

  // What a column sorts by: what is infinite is the largest, what is not there the smallest.
  const rank = (item, index, key) => {
    if (key === "index") return index;
    if (key === "status") return statuses.indexOf(item.status);
    if (key === "shape") return item.shape.reduce((product, size) => product * size, 1);
    if (item[key] === null) return key === "introduced" && !item.introduces ? -1 : Infinity;
    return item[key];
  };
  const compare = (a, b) =>
    typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a < b ? -1 : Number(a > b);

  const sort = (table, heading) => {
    const items = report[table.dataset.of];
    const { key } = heading.dataset;
    // The worst first; names and the order of computation from their beginning.
    const first = heading.classList.contains("name") || key === "index" || key === "chunk"
      ? "ascending" : "descending";
    const other = first === "ascending" ? "descending" : "ascending";
    const direction = heading.getAttribute("aria-sort") === first ? other : first;
    for (const one of heading.parentNode.children) one.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", direction);
    const sign = direction === "ascending" ? 1 : -1;
    const rows = Array.from(table.tBodies[0].rows, (row) => {
      const index = Number(row.dataset.index);
      return { row, index, rank: rank(items[index], index, key) };
    });
    rows.sort((a, b) => sign * compare(a.rank, b.rank) || a.index - b.index);
    table.tBodies[0].append(...rows.map(({ row }) => row));
  };

  // A part of the name, or a pattern of the whole of it if there is a * or ?.
  const matcher = (text) => {
    const wanted = text.trim().toLowerCase();
    if (!/[*?]/.test(wanted)) return (name) => name.toLowerCase().includes(wanted);
    const escaped = wanted.replace(/[.+^${}()|[\]\\]/g, "\\$&");
    const pattern = new RegExp(`^${escaped.replace(/\*/g, ".*").replace(/\?/g, ".")}$`, "s");
    return (name) => pattern.test(name.toLowerCase());
  };
  const filter = (form) => {
    const table = document.getElementById(form.dataset.for);
    const items = report[table.dataset.of];
    const { name, status, introduces } = form.elements;
    const named = matcher(name.value);
    let shown = 0;
    for (const row of table.tBodies[0].rows) {
      const item = items[Number(row.dataset.index)];
      const right =
        named(item.name) &&
        (!status.value ||
          item.status === status.value ||
          (status.value === "off" && item.status !== "match")) &&
        (!introduces || !introduces.checked || item.introduces);
      row.hidden = !right;
      shown += Number(right);
    }
    form.querySelector("output").textContent = `${shown} of ${items.length}`;
  };

  for (const heading of document.querySelectorAll("thead th")) {
    heading.querySelector("button").addEventListener("click", () => {
      sort(heading.closest("table"), heading);
    });
  }
  for (const form of document.querySelectorAll("form.filter")) {
    form.hidden = false;
    form.addEventListener("input", () => filter(form));
    form.addEventListener("submit", (event) => event.preventDefault());
    filter(form);
  }

  const unfold = (form) => {
    form.reset();
    if (form.elements.introduces) form.elements.introduces.checked = false;
    filter(form);
  };
  const show = (index) => {
    const row = document.getElementById(`layer-${index}`);
    const form = document.querySelector('form[data-for="layers-table"]');
    if (row.hidden) unfold(form);
    for (const pointed of document.querySelectorAll("tr.pointed")) {
      pointed.classList.remove("pointed");
    }
    row.classList.add("pointed");
    row.scrollIntoView({ block: "center" });
  };
  for (const link of document.querySelectorAll("a.to-layer")) {
    link.addEventListener("click", (event) => {
      const index = report.layers.findIndex((layer) => layer.name === link.dataset.layer);
      if (index < 0) return;
      event.preventDefault();
      show(index);
    });
  }

  const point = (event, text) => {
    tip.textContent = text;
    tip.hidden = false;
    const { width, height } = tip.getBoundingClientRect();
    const right = event.clientX + 14 + width > window.innerWidth;
    tip.style.left = `${Math.max(4, right ? event.clientX - 14 - width : event.clientX + 14)}px`;
    const low = event.clientY + 14 + height > window.innerHeight;
    tip.style.top = `${Math.max(4, low ? event.clientY - 14 - height : event.clientY + 14)}px`;
  };
  // Calls told(event, x, y) with shares of the element's width and height.
  const follow = (element, told, left = () => {}) => {
    const move = (event) => {
      const box = element.getBoundingClientRect();
      const share = (at, start, size) => Math.min(Math.max((at - start) / size, 0), 0.999999);
      told(event, share(event.clientX, box.left, box.width), share(event.clientY, box.top, box.height));
    };
    element.addEventListener("pointermove", move);
    element.addEventListener("pointerdown", move);
    element.addEventListener("pointerleave", () => {
      tip.hidden = true;
      left();
    });
  };

  const area = document.querySelector(".area");
  if (area) {
    const cursor = area.querySelector(".cursor");
    const at = (x) => Math.floor(x * report.layers.length);
    follow(
      area,
      (event, x) => {
        const layer = report.layers[at(x)];
        cursor.hidden = false;
        cursor.style.left = `${(100 * (at(x) + 0.5)) / report.layers.length}%`;
        point(
          event,
          `${layer.name}\n${layer.status}\nend to end ${short(layer.end_to_end)}\n` +
            `introduced ${own(layer)}`,
        );
      },
      () => {
        cursor.hidden = true;
      },
    );
    area.addEventListener("click", (event) => {
      const box = area.getBoundingClientRect();
      const x = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 0.999999);
      show(at(x));
    });
  }
  for (const svg of document.querySelectorAll(".map svg")) {
    const { channels, frames, values } = report.layers[Number(svg.dataset.layer)].heat_map;
    follow(svg, (event, x, y) => {
      const [row, column] = [Math.floor(x * channels.length), Math.floor(y * frames.length)];
      const value = short(values[row][column]);
      point(event, `channel ${channels[row]}, frame ${frames[column]}: ${value} floors`);
    });
  }
  for (const svg of document.querySelectorAll(".histogram svg")) {
    const { edges, counts } = report.layers[Number(svg.dataset.layer)].histogram;
    follow(svg, (event, x) => {
      const bin = Math.floor(x * counts.length);
      const [from, to] = [short(10 ** edges[bin]), short(10 ** edges[bin + 1])];
      point(event, `${from} to ${to} floors: ${counts[bin]} values`);
    });
  }

  // Paper cannot be unfolded.
  window.addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details")) details.open = true;
    document.querySelectorAll("form.filter").forEach(unfold);
  });
})();
