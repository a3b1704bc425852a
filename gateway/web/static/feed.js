/**
 * The stream of events that keeps the page live: read with `fetch` (an EventSource can't send a token),
 * connected again with growing waits, and never taken for live when nothing has been heard.
 */

import { API, ApiError, request } from './api.js';

const FIRST_WAIT_S = 0.5;
const LONGEST_WAIT_S = 10;

/** So long without a byte, and the gateway is asked whether it is there. */
const SILENCE_MS = 12_000;
const ANSWER_LIMIT_MS = 6_000;

/** A line of the stream may grow to this; all ports of a large lab need a fraction. */
const LONGEST_EVENT = 8 << 20;

/**
 * Calls `handlers.event(name, data)` for each event, `handlers.live()` when the stream is there, and
 * `handlers.lost(why, waitSeconds)` when it is not; runs indefinitely.
 */
export async function follow(path, handlers) {
  for (let failures = 0; ; ) {
    let why = 'the gateway has ended the connection';
    try {
      await readOnce(path, handlers, () => {
        failures = 0;
      });
    } catch (error) {
      why = error.message;
      if (error instanceof ApiError && error.status === 401) failures = 8;
    }
    // Shortened at random, so that the pages of a whole team don't come back in one moment.
    const longest = Math.min(FIRST_WAIT_S * 2 ** failures, LONGEST_WAIT_S);
    const waitSeconds = longest * (0.75 + Math.random() / 4);
    failures += 1;
    handlers.lost(why, waitSeconds);
    await waitOrWake(waitSeconds * 1000);
  }
}

/** A phone that wakes up, or a network that is back, is not kept waiting. */
function waitOrWake(milliseconds) {
  return new Promise((resolve) => {
    const woken = new AbortController();
    const end = () => {
      woken.abort();
      clearTimeout(timer);
      resolve();
    };
    const timer = setTimeout(end, milliseconds);
    const options = { signal: woken.signal };
    window.addEventListener('online', end, options);
    document.addEventListener('visibilitychange', () => document.hidden || end(), options);
  });
}

async function readOnce(path, handlers, succeeded) {
  const stop = new AbortController();
  const watchdog = new Watchdog(stop);
  try {
    const response = await request(path, {
      headers: { Accept: 'text/event-stream' },
      signal: stop.signal,
    });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    const parse = parser((name, data) => {
      handlers.event(name, JSON.parse(data));
      succeeded();
    });
    handlers.live();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      watchdog.heard();
      parse(value);
    }
  } catch (error) {
    throw watchdog.why ? new ApiError(0, watchdog.why) : error;
  } finally {
    watchdog.end();
    stop.abort();
  }
}

/** Ends a stream whose gateway no longer answers: a cut network ends no connection. */
class Watchdog {
  constructor(stop) {
    this.why = '';
    this.stop = stop;
    this.heard();
  }

  heard() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.ask(), SILENCE_MS);
  }

  async ask() {
    try {
      await request(`${API}/ports`, { signal: AbortSignal.timeout(ANSWER_LIMIT_MS) });
      if (!this.ended) this.heard();
    } catch {
      this.why = 'the gateway does not answer';
      this.stop.abort();
    }
  }

  end() {
    this.ended = true;
    clearTimeout(this.timer);
  }
}

/** A function that takes the stream's text in pieces and calls `event(name, data)` for each event. */
export function parser(event) {
  let unread = '';
  let name = '';
  let data = [];
  return (piece) => {
    const lines = (unread + piece).split(/\r?\n/);
    unread = lines.pop();
    if (unread.length > LONGEST_EVENT) throw new ApiError(0, 'the gateway’s event has no end');
    for (const line of lines) {
      if (line === '') {
        if (data.length) event(name || 'message', data.join('\n'));
        name = '';
        data = [];
      } else if (line.startsWith('event:')) name = line.slice(6).trim();
      else if (line.startsWith('data:')) data.push(line.slice(5).replace(/^ /, ''));
    }
  };
}
