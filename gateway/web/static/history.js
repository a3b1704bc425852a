/**
 * How many bytes a port had passed, second by second, and the drawing of it. The window is the same for
 * all ports, so that two sparklines side by side show the same minute.
 */

import { makeSvg, setAttribute } from './dom.js';

export const SECONDS = 60;
const WIDTH = 120;
const HEIGHT = 24;

/** Below this many bytes a second the drawing is not stretched: a few keys are no peak. */
const LEAST_TOP = 60;

/** Rates of the last minute from counters that only grow. */
export class History {
  constructor() {
    this.received = [];
    this.sent = [];
    this.last = null;
  }

  /** The counters, one second after the last time. */
  add(receivedBytes, sentBytes) {
    // Counters that have fallen are those of a gateway that was started again.
    if (this.last) {
      push(this.received, Math.max(0, receivedBytes - this.last[0]));
      push(this.sent, Math.max(0, sentBytes - this.last[1]));
    }
    this.last = [receivedBytes, sentBytes];
  }

  /** Nothing was heard: what comes next is no rate of one second. */
  interrupt() {
    this.last = null;
    this.received.length = 0;
    this.sent.length = 0;
  }
}

function push(rates, value) {
  rates.push(value);
  if (rates.length > SECONDS) rates.shift();
}

/** An <svg> with `draw(history)`; it says nothing to a screen reader, the numbers beside it do. */
export function sparkline() {
  const received = makeSvg('path', { class: 'spark-received' });
  const sent = makeSvg('path', { class: 'spark-sent' });
  const svg = makeSvg(
    'svg',
    {
      class: 'spark',
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
      preserveAspectRatio: 'none',
      'aria-hidden': 'true',
      focusable: 'false',
    },
    received,
    sent,
  );
  const draw = (history) => {
    const top = Math.max(LEAST_TOP, ...history.received, ...history.sent);
    const line = path(history.received, top);
    setAttribute(received, 'd', line && `${line}V${HEIGHT}H${startOf(history.received)}Z`);
    setAttribute(sent, 'd', path(history.sent, top));
  };
  return { svg, draw };
}

function startOf(rates) {
  return round(WIDTH - ((rates.length - 1) * WIDTH) / (SECONDS - 1));
}

function path(rates, top) {
  if (rates.length < 2) return '';
  const step = WIDTH / (SECONDS - 1);
  const points = rates.map((value, index) => {
    const x = WIDTH - (rates.length - 1 - index) * step;
    return `${round(x)} ${round(HEIGHT - 1 - (value / top) * (HEIGHT - 2))}`;
  });
  return `M${points.join('L')}`;
}

function round(number) {
  return Math.round(number * 10) / 10;
}
