/**
 * One port as the page shows it, from the schema `port` of openapi.yaml. Pure: the only module that
 * knows the names of its fields, and what is shown where one is missing.
 */

/** How each state of docs/operations.md is drawn. */
const LOOKS = {
  idle: 'free',
  'not connected': 'waiting',
  'in use': 'busy',
  absent: 'absent',
  broken: 'broken',
  offline: 'waiting',
  opening: 'waiting',
  cleanup: 'waiting',
  released: 'waiting',
  stopped: 'absent',
};

/** The buttons above the cards: a look and its label, in the order shown. */
export const FILTERS = [
  ['free', 'Free'],
  ['busy', 'In use'],
  ['waiting', 'Changing'],
  ['absent', 'Absent'],
  ['broken', 'Broken'],
];

const INPUTS = ['cts', 'dsr', 'ri', 'cd'];

/** A port as the gateway describes it; whatever is missing is empty, whatever is odd is text. */
export function portFrom(content) {
  const state = text(content.state) || 'unknown';
  return {
    name: text(content.name),
    state,
    look: LOOKS[state] ?? 'waiting',
    reason: text(content.reason),
    connect: text(content.connect),
    host: text(content.host),
    tcpPort: Number(content.tcp_port) || 0,
    protocol: text(content.protocol) || 'rfc2217',
    tls: content.tls === true,
    device: text(content.device),
    usb: usbOf(content.usb),
    settings: settingsOf(content.settings),
    baudrate: Number(content.settings?.baudrate) || 0,
    lines: linesOf(content.lines ?? {}),
    clients: Array.isArray(content.clients) ? content.clients.map(clientFrom) : [],
    receivedBytes: Number(content.received_bytes) || 0,
    sentBytes: Number(content.sent_bytes) || 0,
  };
}

function clientFrom({ address, state, connected_at: connectedAt }) {
  return { address: text(address), isController: state === 'controller', connectedAt: text(connectedAt) };
}

function text(value) {
  return value === null || value === undefined ? '' : String(value);
}

/** The USB device in one line. */
function usbOf(usb) {
  return usb ? [usb.chip, usb.ids, usb.serial].filter(Boolean).map(text).join(' · ') : '';
}

/** "115200 8N1", and the flow control if there is one. */
function settingsOf(settings) {
  if (!settings) return '';
  const { baudrate, bytesize, parity, stopbits, flow_control: flow } = settings;
  const frame = `${text(bytesize)}${text(parity).charAt(0).toUpperCase()}${text(stopbits)}`;
  return [text(baudrate), frame, flow === 'none' ? '' : text(flow)].filter(Boolean).join(' ');
}

/** Each known line: DTR and RTS are outputs of the gateway, the others inputs. */
function linesOf(lines) {
  return ['dtr', 'rts', ...INPUTS]
    .filter((name) => typeof lines[name] === 'boolean')
    .map((name) => ({ name: name.toUpperCase(), on: lines[name], input: INPUTS.includes(name) }));
}

/** The clients of a port and since when the first has it; '' without any. */
export function usersOf({ clients }) {
  const named = (some) => some.map(({ address }) => address).join(', ');
  const controllers = clients.filter(({ isController }) => isController);
  const suspended = named(clients.filter(({ isController }) => !isController));
  const since = controllers.length ? ` since ${localTime(controllers[0].connectedAt)}` : '';
  return [named(controllers) + since, suspended && `suspended: ${suspended}`].filter(Boolean).join(', ');
}

/** A time of day here, with the date if that is not today's. */
function localTime(iso) {
  const at = new Date(iso);
  if (Number.isNaN(at.getTime())) return iso;
  const isToday = at.toDateString() === new Date().toDateString();
  return isToday ? at.toLocaleTimeString() : at.toLocaleString();
}

/** The state for a reader and a screen reader alike. */
export function stateOf(port) {
  return port.state === 'idle' ? 'free' : port.state;
}
