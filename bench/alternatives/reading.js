// Reads exports as a small script does: the whole file as text, split, JSON.parse; nothing is stored.
"use strict";

const { readFileSync } = require("node:fs");
const { performance } = require("node:perf_hooks");

const began = performance.now();
const transactions = new Map();
let rows = 0;
for (const file of process.argv.slice(2)) {
  for (const line of readFileSync(file, "utf8").split("\n")) {
    if (line === "") continue;
    const cells = line.split(";");
    rows += 1;
    if (cells[11] === "-1") {
      transactions.delete(cells[0]);
      continue;
    }
    transactions.set(cells[0], {
      type: Number(cells[1]),
      timestamp: new Date(Number(cells[4])),
      sender: cells[5],
      params: JSON.parse(cells[8]),
      diff: JSON.parse(cells[9]),
      extra: JSON.parse(cells[10]),
    });
  }
}
console.log(JSON.stringify({ rows, seconds: (performance.now() - began) / 1000 }));
