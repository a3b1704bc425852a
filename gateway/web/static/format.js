/** Numbers, times and a board's bytes as text for people. Pure: no page, no network. */

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];

/** A number of bytes, as `esp-gateway status` writes it: "1.5 KiB". */
export function amount(bytes) {
  let unit = 0;
  let number = Number(bytes) || 0;
  while (number >= 1024 && unit < UNITS.length - 1) {
    number /= 1024;
    unit += 1;
  }
  return `${unit ? number.toFixed(1) : Math.round(number)} ${UNITS[unit]}`;
}

/** Bytes a second: "11.2 KiB/s"; nothing flows: "0 B/s". */
export function rate(bytesPerSecond) {
  return `${amount(bytesPerSecond)}/s`;
}

/** "1 board", "3 boards". */
export function count(number, noun) {
  return `${number} ${noun}${number === 1 ? '' : 's'}`;
}

const OSC = /(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?/g;
const CSI = /(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?/g;
const OTHER_ESCAPE = /\x1b[ -/]*[0-~]?/g;
const CONTROLS = /[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]/g;
// They turn text around or hide it: a board could show one thing and mean another.
const INVISIBLE = /[\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]/g;

/** A board's output without what a terminal would obey; a control character becomes a dot. */
export function plainText(text) {
  return text
    .replace(OSC, '')
    .replace(CSI, '')
    .replace(OTHER_ESCAPE, '')
    .replace(CONTROLS, '·')
    .replace(INVISIBLE, '·');
}

/**
 * The last lines of a board's output, without escapes, the newest last. A line that the board
 * wrote again after a carriage return, as progress bars do, is there as it was last.
 */
export function lastLines(text, lines, columns) {
  const written = plainText(text.replace(/\r+\n/g, '\n')).split('\n');
  const shown = [];
  for (let i = written.length - 1; i >= 0 && shown.length < lines; i -= 1) {
    const line = written[i].replace(/\r+$/, '').split('\r').pop().trimEnd();
    if (line || shown.length) shown.unshift(line.slice(0, columns));
  }
  return shown;
}
