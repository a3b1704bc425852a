/**
 * The console of one board. It begins read-only, over the log that the gateway keeps, and leaves
 * the port to others; after "Connect" it is a client of the port like any other, over a WebSocket.
 */

import { ApiError, checkToken, portPath, request, tail, token } from './api.js';
import { announce, toast } from './dialogs.js';
import { make, setAttribute, setText, show } from './dom.js';
import { overlap } from './overlap.js';
import { stateOf, usersOf } from './port.js';
import { ConsoleTerminal } from './terminal.js';

/** How much of the log is shown when a console is opened, and asked for at once later. */
const FIRST_BYTES = 16_384;
const MOST_BYTES = 65_536;

/** Between two looks into the log while the board talks. */
const LOOK_MS = 250;

/** What a socket may have to send; a paste beyond it is refused, not cut. */
const MOST_UNSENT_BYTES = 1 << 20;

const LINE_ENDS = { CR: '\r', LF: '\n', 'CR LF': '\r\n', nothing: '' };
const LINE_END_KEY = 'esp-gateway-line-end';

const encoder = new TextEncoder();

/** Fills `section` until `close()`. `actions`: reset, bootloader, closed. */
export class Console {
  constructor(section, port, actions) {
    this.section = section;
    this.name = port.name;
    this.actions = actions;
    this.next = null;
    this.socket = null;
    this.isLive = true;
    this.ended = new AbortController();
    this.build();
    this.terminal = new ConsoleTerminal(this.screen, {
      label: `Terminal of ${this.name}. Control ] leaves it.`,
      typed: (text) => this.typed(text),
      leave: () => this.connectButton.focus(),
    });
    this.update(port, true);
    this.look();
  }

  build() {
    const button = (label, act, properties = {}) =>
      make('button', { type: 'button', onclick: act, ...properties }, label);
    this.dot = make('span', { class: 'dot', 'aria-hidden': 'true' });
    this.state = make('span', { class: 'state' });
    this.users = make('p', { class: 'users' });
    this.mode = make('p', { class: 'mode', role: 'status' });
    this.connectButton = button('Connect', () => this.toggle(), { class: 'primary' });
    this.resetButton = button('Reset', () => this.actions.reset(this.name));
    this.bootloaderButton = button('Enter bootloader', () => this.actions.bootloader(this.name));
    this.logButton = button('Download log', () => this.download());
    const aloud = make('input', { type: 'checkbox' });
    aloud.addEventListener('change', () => this.terminal.readAloud(aloud.checked));
    this.screen = make('div', { class: 'screen' });
    this.section.replaceChildren(
      make(
        'header',
        { class: 'console-header' },
        this.dot,
        make('h2', { id: 'console-name', tabindex: '-1' }, this.name),
        this.state,
        button('×', () => this.actions.closed(), { class: 'quiet close', 'aria-label': `Close the console of ${this.name}` }),
      ),
      this.users,
      make(
        'div',
        { class: 'toolbar', role: 'group', 'aria-label': `Console of ${this.name}` },
        this.connectButton,
        this.resetButton,
        this.bootloaderButton,
        this.logButton,
        button('Clear', () => this.terminal.clear()),
        make('label', { class: 'check' }, aloud, 'Read output aloud'),
      ),
      this.mode,
      this.screen,
      this.lineForm(),
    );
    show(this.section, true);
  }

  lineForm() {
    const input = make('input', {
      type: 'text',
      name: 'line',
      autocomplete: 'off',
      autocapitalize: 'off',
      spellcheck: 'false',
      placeholder: 'Send a line',
      'aria-label': `Line to send to ${this.name}`,
    });
    const ends = make('select', { 'aria-label': 'Line end' });
    ends.append(...Object.keys(LINE_ENDS).map((name) => make('option', {}, name)));
    ends.value = localStorage.getItem(LINE_END_KEY) ?? 'CR';
    ends.addEventListener('change', () => localStorage.setItem(LINE_END_KEY, ends.value));
    this.line = make('fieldset', { class: 'line-input' }, input, ends, make('button', {}, 'Send'));
    const form = make('form', {}, this.line);
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      if (this.typed(input.value + (LINE_ENDS[ends.value] ?? '\r'))) input.value = '';
    });
    return form;
  }

  /** The port as it is now; null once the gateway no longer serves it. */
  update(port, isLive) {
    this.port = port;
    this.isLive = isLive;
    setAttribute(this.section, 'data-look', isLive && port ? port.look : 'unknown');
    setText(this.state, !port ? 'no longer served' : isLive ? stateOf(port) : `was ${stateOf(port)}`);
    setText(this.users, port ? [port.reason, usersOf(port) || 'no client connected'].filter(Boolean).join(' – ') : '');
    const cannot = !isLive || !port || port.look === 'absent' || port.look === 'broken';
    this.resetButton.disabled = cannot;
    this.bootloaderButton.disabled = cannot;
    this.logButton.disabled = !isLive || !port;
    this.showMode();
  }

  /** Whether this console is a client of the port, for which no confirmation is needed. */
  get isConnected() {
    return this.socket?.readyState === WebSocket.OPEN && this.isAttached;
  }

  showMode() {
    const { socket } = this;
    setText(this.connectButton, socket ? 'Disconnect' : 'Connect');
    this.connectButton.disabled = !socket && (!this.isLive || !this.port);
    this.line.disabled = !this.isConnected;
    setAttribute(this.section, 'data-mode', this.isConnected ? 'connected' : 'watching');
    let mode = 'Watching. The port stays free for others; connect to type.';
    if (!this.isLive) mode = 'No connection to the gateway: nothing new is shown.';
    else if (this.isConnected) mode = 'Connected. What you type goes to the board.';
    else if (socket) mode = 'Connecting …';
    setText(this.mode, mode);
  }

  /** The board has said something up to `seq`: look into the log, unless it comes by the socket. */
  heard() {
    this.hasNews = true;
    if (!this.socket && !this.looking) this.look();
  }

  async look() {
    this.looking = true;
    this.hasNews = false;
    try {
      const { bytes, next } = await this.fromLog();
      if (!this.socket && !this.ended.signal.aborted) {
        this.terminal.write(bytes, { old: true });
        this.next = next;
      }
    } catch (error) {
      // The page says already when the gateway is away.
      if (error instanceof ApiError && error.status) this.terminal.note(error.message);
    }
    setTimeout(() => {
      this.looking = false;
      if (this.hasNews && !this.socket && !this.ended.signal.aborted) this.look();
    }, LOOK_MS);
  }

  fromLog() {
    const bytes = this.next === null ? FIRST_BYTES : MOST_BYTES;
    return tail(this.name, this.next, bytes, { signal: this.ended.signal });
  }

  toggle() {
    if (this.socket) this.disconnect();
    else this.connect();
  }

  connect() {
    const url = new URL(portPath(this.name, 'console'), location.href);
    url.protocol = url.protocol.replace('http', 'ws');
    const socket = new WebSocket(url, protocols());
    socket.binaryType = 'arraybuffer';
    this.socket = socket;
    this.early = [];
    this.isAttached = false;
    this.wasOpened = false;
    this.reason = '';
    socket.addEventListener('open', () => {
      this.wasOpened = true;
    });
    socket.addEventListener('message', ({ data }) => socket === this.socket && this.received(data));
    socket.addEventListener('close', ({ reason }) => this.socketClosed(socket, reason));
    this.showMode();
  }

  disconnect() {
    const { socket } = this;
    this.socketClosed(socket, '');
    socket.close(1000);
  }

  /** The port is ours: from here on the socket brings what the board says. */
  async granted(socket) {
    this.isAttached = true;
    this.showMode();
    announce(`Connected to ${this.name}`);
    this.terminal.focus();
    try {
      // What was said between the last look and the socket; what both have is shown once.
      const { bytes } = await this.fromLog();
      if (socket !== this.socket) return;
      this.terminal.write(bytes, { old: true });
      const early = this.early.splice(0);
      if (early.length) this.terminal.write(overlap(bytes, early));
    } catch (error) {
      if (socket === this.socket) this.early.forEach((each) => this.terminal.write(each));
    }
    this.early = null;
  }

  received(data) {
    if (typeof data === 'string') {
      this.noticed(data);
    } else {
      const bytes = new Uint8Array(data);
      if (this.early) this.early.push(bytes);
      else this.terminal.write(bytes);
    }
  }

  /** What happens to this console; see consoleNotice in openapi.yaml. */
  noticed(data) {
    const { type, error, notice } = JSON.parse(data);
    if (type === 'granted') this.granted(this.socket);
    else if (type === 'closed') this.reason = error ?? '';
    else if (notice) {
      this.terminal.note(notice);
      announce(notice);
    }
  }

  async socketClosed(socket, reason) {
    if (socket !== this.socket) return;
    const { isAttached, wasOpened } = this;
    this.socket = null;
    this.isAttached = false;
    this.next = isAttached ? null : this.next;
    this.showMode();
    if (!wasOpened && this.isLive) {
      // A browser does not say why a WebSocket was refused; the likely reason can be asked for.
      const before = token();
      const why = await checkToken(this.name);
      if (token() !== before) {
        this.connect();
        return;
      }
      this.reason = why;
    }
    const why = this.reason || reason || (isAttached ? 'disconnected' : 'not connected');
    this.terminal.note(why);
    announce(why);
    if (isAttached) this.catchUp();
    else this.heard();
  }

  /** From now on the log is followed again, from where it is now: the socket has shown the rest. */
  async catchUp() {
    this.looking = true;
    try {
      const { next } = await tail(this.name, null, 1, { signal: this.ended.signal });
      this.next = next;
    } catch {
      // Read again when the gateway is back.
    }
    this.looking = false;
    if (this.hasNews && !this.socket) this.look();
  }

  typed(text) {
    if (!this.isConnected) {
      announce('Not connected: nothing was sent');
      this.mode.classList.remove('called');
      requestAnimationFrame(() => this.mode.classList.add('called'));
      return false;
    }
    const bytes = encoder.encode(text);
    if (this.socket.bufferedAmount + bytes.length > MOST_UNSENT_BYTES) {
      toast('The board is slower than what you paste: nothing of it was sent.', { problem: true });
      return false;
    }
    this.socket.send(bytes);
    return true;
  }

  async download() {
    try {
      const response = await request(portPath(this.name, 'log'));
      const url = URL.createObjectURL(await response.blob());
      make('a', { href: url, download: `${this.name}.log` }).click();
      setTimeout(() => URL.revokeObjectURL(url), 10_000);
    } catch (error) {
      toast(`No log of ${this.name}: ${error.message}`, { problem: true });
    }
  }

  focus() {
    this.connectButton.focus();
  }

  close() {
    this.ended.abort();
    if (this.socket) {
      const { socket } = this;
      this.socket = null;
      socket.close(1000);
    }
    this.terminal.dispose();
    this.section.replaceChildren();
    show(this.section, false);
  }
}

/** A browser can't give a WebSocket a header: the token goes as one of the protocols offered. */
function protocols() {
  return token() ? ['esp-gateway', `bearer.${token()}`] : ['esp-gateway'];
}
