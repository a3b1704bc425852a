/** Joins two views of one stream that were opened one after the other. Pure. */

import { join } from './api.js';

/** Compared at most: what a board says in the time of one request. */
const LONGEST = 65_536;

/**
 * What `pieces` have beyond `seen`, where the end of `seen` may be the beginning of `pieces`: the
 * longest such overlap is left out.
 */
export function overlap(seen, pieces) {
  const later = join(pieces);
  for (let n = Math.min(seen.length, later.length, LONGEST); n > 0; n -= 1) {
    if (endsWith(seen, later, n)) return later.subarray(n);
  }
  return later;
}

function endsWith(seen, later, n) {
  const from = seen.length - n;
  for (let i = 0; i < n; i += 1) {
    if (seen[from + i] !== later[i]) return false;
  }
  return true;
}
