/**
 * The gateway's HTTP interface (docs/http-api.md) as functions. Asks for the token when the gateway
 * requires one, once, and keeps it for this tab.
 */

/** Every path of the interface begins with it. */
export const API = '/api/v1';

const TOKEN_KEY = 'esp-gateway-token';

/** An answer that is not 2xx, or none: `status` is 0 when the gateway could not be reached. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

let askForToken = async () => null;
let asking = null;

/** `ask(why)` shows a dialog and gives the token, or null when the person has none. */
export function onTokenWanted(ask) {
  askForToken = ask;
}

/** The token, '' without one. */
export function token() {
  return sessionStorage.getItem(TOKEN_KEY) ?? '';
}

/** The path of a port's resource. */
export function portPath(name, resource = '') {
  return `${API}/ports/${encodeURIComponent(name)}${resource ? `/${resource}` : ''}`;
}

/**
 * `fetch` with the token. A 401 asks for it and tries again; only one dialog, however many requests
 * need it. Gives a response that is ok, else throws ApiError.
 */
export async function request(path, options = {}) {
  for (;;) {
    const used = token();
    const response = await send(path, options, used);
    if (response.status === 401) {
      if (used === token() && !(await newToken(used))) {
        throw new ApiError(401, 'the gateway requires a token');
      }
      continue;
    }
    if (!response.ok) throw new ApiError(response.status, await errorOf(response));
    return response;
  }
}

async function send(path, options, used) {
  const headers = { ...options.headers };
  if (used) headers.Authorization = `Bearer ${used}`;
  try {
    return await fetch(path, { cache: 'no-store', ...options, headers });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new ApiError(0, 'the gateway can’t be reached');
  }
}

async function errorOf(response) {
  const said = await response.text();
  try {
    return String(JSON.parse(said).error);
  } catch {
    return `${response.status} ${response.statusText}`.trim();
  }
}

function newToken(refused) {
  asking ??= askForToken(refused ? 'This token is not accepted.' : '').finally(() => {
    asking = null;
  });
  return asking.then((given) => {
    if (given) sessionStorage.setItem(TOKEN_KEY, given);
    return given;
  });
}

/** The JSON answer to a GET. */
export async function getJson(path, options) {
  return (await request(path, options)).json();
}

/** The JSON answer to a POST of JSON. */
export async function postJson(path, body = {}) {
  const response = await request(path, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify(body),
  });
  return response.json();
}

/**
 * Asks for the token if the gateway requires one for a port; '' or why the port is not available. Waits for nothing,
 * so it changes nothing.
 */
export async function checkToken(name) {
  try {
    await postJson(portPath(name, 'wait'), { pattern: '.', timeout_s: 0 });
  } catch (error) {
    if (error.status !== 408) return error.message;
  }
  return '';
}

/** A board's output since `seq` (null: the last `bytes` of it), as { bytes, next }. */
export async function tail(name, seq, bytes, options) {
  const query = new URLSearchParams({ bytes });
  if (seq !== null) query.set('since', seq);
  const { entries, next } = await getJson(`${portPath(name, 'tail')}?${query}`, options);
  return { bytes: join(entries.map((entry) => decode(entry.base64))), next };
}

function decode(base64) {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

/** Several pieces as one. */
export function join(pieces) {
  const whole = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  let at = 0;
  for (const piece of pieces) {
    whole.set(piece, at);
    at += piece.length;
  }
  return whole;
}
