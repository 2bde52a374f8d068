// Counts the words of a text, the most frequent first.

const WORD = /[\p{Letter}\p{Number}'’-]+/gu;

export const handler = async (event) => {
  const counts = new Map();
  for (const [word] of (event?.text ?? '').toLowerCase().matchAll(WORD)) {
    counts.set(word, (counts.get(word) ?? 0) + 1);
  }
  console.log(counts.size, 'different words');
  return Object.fromEntries([...counts].sort(([, one], [, other]) => other - one));
};
