/**
 * One port as the page needs it, from what `GET /api/ports` tells. Pure: the one place that knows the
 * names of the interface's fields, and what is shown where a gateway does not tell one.
 */

/** Each state of a device in the words of docs/operations.md, and how it is drawn. */
const LOOKS = {
  idle: 'free',
  'not connected': 'waiting',
  'in use': 'busy',
  absent: 'absent',
  broken: 'broken',
  away: 'waiting',
  opening: 'waiting',
  releasing: 'waiting',
  released: 'waiting',
  stopped: 'absent',
};

/** What the buttons above the cards choose by: a look and its label, in the order shown. */
export const FILTERS = [
  ['free', 'Free'],
  ['busy', 'In use'],
  ['waiting', 'Changing'],
  ['absent', 'Absent'],
  ['broken', 'Broken'],
];

const INPUTS = ['cts', 'dsr', 'ri', 'cd'];

/** A port as `told` by the gateway; whatever is missing is empty, whatever is odd is text. */
export function portFrom(told) {
  const state = text(told.state) || 'unknown';
  return {
    name: text(told.name),
    state,
    look: LOOKS[state] ?? 'waiting',
    reason: text(told.reason),
    address: text(told.address),
    tcpPort: Number(told.tcp_port) || 0,
    host: text(told.host),
    protocol: text(told.protocol) || 'rfc2217',
    tls: told.tls === true,
    device: text(told.device),
    usb: usbOf(told.usb),
    settings: text(told.settings),
    baud: Number(told.baud) || 0,
    lines: linesOf(told),
    client: text(told.client),
    watchers: text(told.watchers),
    since: text(told.since),
    receivedBytes: Number(told.received_bytes) || 0,
    sentBytes: Number(told.sent_bytes) || 0,
  };
}

function text(value) {
  return value === null || value === undefined ? '' : String(value);
}

/** Who the USB device is, in one line. */
function usbOf(usb) {
  return usb ? [usb.chip, usb.ids].filter(Boolean).map(text).join(' · ') : '';
}

/**
 * [name, on, driven by] for each line: DTR and RTS are the gateway's, the others the board's. Empty while
 * nobody knows.
 */
function linesOf(told) {
  const found = ['dtr', 'rts']
    .filter((name) => typeof told[name] === 'boolean')
    .map((name) => ({ name: name.toUpperCase(), on: told[name], input: false }));
  for (const name of INPUTS) {
    if (typeof told[name] === 'boolean') {
      found.push({ name: name.toUpperCase(), on: told[name], input: true });
    }
  }
  return found;
}

/** Who has the port and since when; '' when nobody. */
export function usersOf(port) {
  if (!port.client && !port.watchers) return '';
  const since = port.since ? ` since ${port.since}` : '';
  const watchers = port.watchers ? `, watched by ${port.watchers}` : '';
  return `${port.client}${since}${watchers}`;
}

/** The state for a reader and a screen reader alike. */
export function stateOf(port) {
  return port.state === 'idle' ? 'free' : port.state;
}
