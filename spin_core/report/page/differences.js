"use strict";
// What changed between two texts, word by word: a list of [tag, words], where the tag is "ins", "del" or "" for what both have.
const MANY_WORDS = 1500;  // a side, beyond which nothing is compared

// Longest common subsequence of words, with what both begin and end with set aside
const differences = (old, now) => {
  const a = old.split(/(\s+)/).filter(Boolean), b = now.split(/(\s+)/).filter(Boolean);
  let start = 0, end = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start++;
  while (end < a.length - start && end < b.length - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end++;
  const n = a.length - start - end, m = b.length - start - end;
  if (n > MANY_WORDS || m > MANY_WORDS) return null;
  const table = new Uint16Array((n + 1) * (m + 1)), wide = m + 1;
  for (let i = n - 1; i >= 0; i--)
    for (let j = m - 1; j >= 0; j--)
      table[i * wide + j] = a[start + i] === b[start + j] ? table[(i + 1) * wide + j + 1] + 1 : Math.max(table[(i + 1) * wide + j], table[i * wide + j + 1]);
  const parts = [], add = (tag, word) => {
    const before = parts[parts.length - 1];
    if (before && before[0] === tag) before[1] += word; else parts.push([tag, word]);
  };
  for (let k = 0; k < start; k++) add("", a[k]);
  let i = 0, j = 0;
  while (i < n || j < m) {
    if (i < n && j < m && a[start + i] === b[start + j]) { add("", a[start + i]); i++; j++; }
    else if (i < n && (j === m || table[(i + 1) * wide + j] >= table[i * wide + j + 1])) { add("del", a[start + i]); i++; }
    else { add("ins", b[start + j]); j++; }
  }
  for (let k = a.length - end; k < a.length; k++) add("", a[k]);
  return readable(parts);
};

// a word or two that happen to be in both are no reason to break a change in two
const readable = (parts) => {
  const found = [];
  let gone = "", added = "";
  const flush = () => {
    if (gone) found.push(["del", gone]);
    if (added) found.push(["ins", added]);
    gone = added = "";
  };
  parts.forEach(([tag, words], place) => {
    const short = words.trim().split(/\s+/).length <= 2 && (gone || added) && place < parts.length - 1;
    if (tag === "del" || (!tag && short)) gone += words;
    if (tag === "ins" || (!tag && short)) added += words;
    if (!tag && !short) { flush(); found.push(["", words]); }
  });
  flush();
  return found;
};
