/**
 * One board on the page. Changes what has changed and nothing else, so that twenty cards cost little
 * and a selection or an open list of commands stays.
 */

import { commandsFor, portUrl } from './commands.js';
import { announce, copy, toast } from './dialogs.js';
import { make, setAttribute, setText, show } from './dom.js';
import { amount, lastLines, rate } from './format.js';
import { History, sparkline } from './history.js';
import { stateOf, usersOf } from './port.js';

const OUTPUT_LINES = 4;
const OUTPUT_COLUMNS = 160;

/** What is kept of a board's output for its last lines. */
const OUTPUT_CHARACTERS = 4096;

let nextId = 1;

/** A card; `element` is an <li>. `actions` are what its buttons do, each called with the name. */
export class Card {
  constructor(name, actions) {
    this.name = name;
    this.port = null;
    this.history = new History();
    this.output = '';
    this.drawn = '';
    this.commandsOf = '';
    this.build(`board-${nextId++}`, actions);
  }

  build(id, actions) {
    const button = (label, act, spoken) =>
      make('button', { type: 'button', 'aria-label': `${spoken} ${this.name}`, onclick: act }, label);
    this.dot = make('span', { class: 'dot', 'aria-hidden': 'true' });
    this.state = make('span', { class: 'state' });
    this.reason = make('p', { class: 'reason', hidden: true });
    this.device = make('p', { class: 'device' });
    this.address = make('p', { class: 'address' });
    this.users = make('p', { class: 'users' });
    this.settings = make('span', { class: 'settings' });
    this.lines = make('span', { class: 'lines' });
    this.received = make('span', { class: 'received' });
    this.sent = make('span', { class: 'sent' });
    this.spark = sparkline();
    this.last = make('pre', { class: 'last', translate: 'no' });
    this.consoleButton = button('Console', () => actions.console(this.name), 'Console of');
    this.consoleButton.classList.add('plain');
    this.resetButton = button('Reset', () => actions.reset(this.name), 'Reset');
    this.bootloaderButton = button(
      'Bootloader',
      () => actions.bootloader(this.name),
      'Enter bootloader of',
    );
    this.commands = make('ul', { class: 'commands' });
    this.details = make(
      'details',
      { class: 'more' },
      make('summary', { 'aria-label': `Commands for ${this.name}` }, 'Commands'),
      this.commands,
    );
    this.details.addEventListener('toggle', () => this.showCommands());
    const heading = make('h2', { id }, this.name);
    this.article = make(
      'article',
      { class: 'card', 'aria-labelledby': id },
      make('header', {}, this.dot, heading, this.state),
      this.reason,
      make('div', { class: 'identity' }, this.address, this.device),
      this.users,
      make('div', { class: 'serial' }, this.settings, this.lines),
      make('div', { class: 'traffic' }, this.received, this.spark.svg, this.sent),
      make(
        'figure',
        { class: 'output' },
        make('figcaption', { class: 'visually-hidden', text: `Last output of ${this.name}` }),
        this.last,
      ),
      make(
        'div',
        { class: 'buttons', role: 'group', 'aria-label': `Actions on ${this.name}` },
        this.consoleButton,
        this.resetButton,
        this.bootloaderButton,
      ),
      this.details,
    );
    this.element = make('li', {}, this.article);
    this.showOutput();
  }

  /** Shows a port as it is now. */
  update(port) {
    const before = this.port;
    this.port = port;
    setText(this.reason, port.reason);
    show(this.reason, Boolean(port.reason));
    setText(this.device, [port.device, port.usb].filter(Boolean).join(' · '));
    setText(this.address, portUrl(port, location.hostname) ?? (port.connect ? `→ ${port.connect}` : 'no address yet'));
    setText(this.users, usersOf(port) || 'no client connected');
    this.users.classList.toggle('none', !port.clients.length);
    setText(this.settings, port.settings || '–');
    this.showLines(port.lines);
    this.showCommands();
    if (before && (before.state !== port.state || usersOf(before) !== usersOf(port))) {
      announce(`${port.name}: ${[stateOf(port), port.reason, usersOf(port)].filter(Boolean).join(', ')}`);
    }
    if (!before) this.tick(false);
  }

  /** Whether what is shown is so now, or was so when the gateway was last heard. */
  setLive(isLive) {
    const { look } = this.port;
    setAttribute(this.article, 'data-look', isLive ? look : 'unknown');
    setText(this.state, isLive ? stateOf(this.port) : `was ${stateOf(this.port)}`);
    const cannot = !isLive || look === 'absent' || look === 'broken';
    this.resetButton.disabled = cannot;
    this.bootloaderButton.disabled = cannot;
  }

  showLines(lines) {
    const key = JSON.stringify(lines);
    if (key === this.drawn) return;
    this.drawn = key;
    this.lines.replaceChildren(
      ...lines.map(({ name, on, input }) =>
        make(
          'span',
          { class: `line${on ? ' on' : ''}${input ? ' input' : ''}`, title: `${name} ${on ? 'on' : 'off'}` },
          name,
          make('span', { class: 'visually-hidden', text: on ? ' on' : ' off' }),
        ),
      ),
    );
  }

  showCommands() {
    if (!this.details.open) return;
    const commands = commandsFor(this.port, location.hostname);
    const key = JSON.stringify([commands, this.port.host]);
    if (key === this.commandsOf) return;
    this.commandsOf = key;
    const rows = commands.map(([label, command]) => this.commandRow(label, command));
    const hint = this.commandHint();
    if (hint) rows.unshift(make('li', { class: 'hint', text: hint }));
    this.commands.replaceChildren(...rows);
  }

  commandHint() {
    const { tcpPort, connect, host, tls } = this.port;
    if (tls) return 'This port requires TLS: ca.pem is the authority of its certificate; a client certificate goes in as cert=…&key=….';
    if (!tcpPort) return connect ? `The gateway connects to ${connect}.` : 'This port has no address yet.';
    const isLocal = host.startsWith('127.') || host === '[::1]' || host === 'localhost';
    const here = location.hostname;
    const openedLocally = here === 'localhost' || here === '[::1]' || here.startsWith('127.');
    return isLocal && !openedLocally ? 'This port takes connections from the gateway’s own machine only (host: 127.0.0.1).' : '';
  }

  commandRow(label, command) {
    const copyButton = make('button', { type: 'button', 'aria-label': `Copy the ${label} command` }, 'Copy');
    copyButton.addEventListener('click', async () => {
      if (await copy(command)) {
        setText(copyButton, 'Copied');
        announce(`Copied the ${label} command`);
        setTimeout(() => setText(copyButton, 'Copy'), 2000);
      } else {
        toast('The browser did not allow copying: select the command by hand.', { problem: true });
      }
    });
    return make('li', {}, make('span', { class: 'tool' }, label), copyButton, make('code', { translate: 'no' }, command));
  }

  /** Output of the board; `text` may be any text at all. */
  addOutput(text) {
    this.output = (this.output + text).slice(-OUTPUT_CHARACTERS);
    this.hasNews = true;
  }

  /** The board's output from before the page was opened. */
  setFirstOutput(text) {
    this.output = (text + this.output).slice(-OUTPUT_CHARACTERS);
    this.hasNews = true;
  }

  /** Draws the output since the last call; the page calls it a few times a second. */
  showOutput() {
    this.hasNews = false;
    const lines = lastLines(this.output, OUTPUT_LINES, OUTPUT_COLUMNS);
    setText(this.last, lines.join('\n') || 'no output yet');
    this.last.classList.toggle('none', !lines.length);
  }

  /** A second has passed; `isLive` says whether the counters are those of now. */
  tick(isLive) {
    if (isLive) this.history.add(this.port.receivedBytes, this.port.sentBytes);
    else this.history.interrupt();
    const now = (rates) => (isLive && rates.length ? rate(rates.at(-1)) : '');
    this.showTraffic(this.received, '↓', 'From the board', this.port.receivedBytes, now(this.history.received));
    this.showTraffic(this.sent, '↑', 'To the board', this.port.sentBytes, now(this.history.sent));
    this.spark.draw(this.history);
  }

  showTraffic(element, arrow, spoken, bytes, perSecond) {
    setText(element, `${arrow} ${amount(bytes)}`);
    setAttribute(element, 'title', `${spoken}: ${amount(bytes)}${perSecond && `, now ${perSecond}`}`);
    setAttribute(element, 'aria-label', `${spoken}: ${amount(bytes)}`);
    setAttribute(element, 'role', 'img');
  }
}
