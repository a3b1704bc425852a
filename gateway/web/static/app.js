/** The page: its boards as the gateway describes them, the open console, and the buttons' actions. */

import { API, ApiError, onTokenWanted, portPath, postJson, tail } from './api.js';
import { Card } from './card.js';
import { Console } from './console.js';
import { announce, askForToken, confirmDisturbance, toast } from './dialogs.js';
import { make, setAttribute, setText, show } from './dom.js';
import { follow } from './feed.js';
import { count } from './format.js';
import { FILTERS, portFrom, usersOf } from './port.js';

const SECOND_MS = 1000;

/** Between two drawings of new output, however fast it comes. */
const OUTPUT_MS = 250;

/** What each card is given to start with. */
const FIRST_OUTPUT_BYTES = 1024;

const byId = (id) => document.getElementById(id);
const boards = byId('boards');
const cards = new Map();
const filterButtons = new Map();
let isLive = false;
let chosenLook = '';
let open = null;
let countdown = 0;

const actions = {
  console: (name) => {
    location.hash = `#/${encodeURIComponent(name)}`;
  },
  reset: (name) => disturb(name, 'reset', 'Reset', 'was reset'),
  bootloader: (name) => disturb(name, 'bootloader', 'Enter bootloader', 'is in its bootloader'),
  closed: () => {
    location.hash = '#/';
  },
};

/** Resets a board; asks first when another client has it. */
async function disturb(name, resource, verb, done) {
  const port = cards.get(name)?.port;
  const mine = open?.name === name && open.isConnected;
  const others = port && port.clients.length > (mine ? 1 : 0);
  try {
    let force = mine && !others;
    if (others) {
      force = await confirm(name, verb, `In use by ${usersOf(port)}.`);
      if (!force) return;
    }
    await postJson(portPath(name, resource), force ? { force: true } : {}).catch(async (error) => {
      // Another client has connected meanwhile.
      if (error.status !== 409 || force) throw error;
      if (!(await confirm(name, verb, error.message))) return null;
      return postJson(portPath(name, resource), { force: true });
    });
    toast(`${name} ${done}`);
  } catch (error) {
    if (error instanceof ApiError) toast(`${name}: ${error.message}`, { problem: true });
    else throw error;
  }
}

function confirm(name, verb, who) {
  return confirmDisturbance({
    title: `${verb} – ${name}`,
    text: `${who} The board restarts while it is in use: a flash write would be broken off.`,
    action: `${verb} anyway`,
  });
}

// Events of the gateway.

const handlers = {
  live() {
    isLive = true;
    clearInterval(countdown);
    setText(byId('live-countdown'), '');
    setText(byId('live-text'), 'Live');
    setAttribute(byId('live'), 'data-live', 'live');
    show(byId('lost'), false);
    setAttribute(boards, 'data-stale', null);
  },

  lost(why, waitSeconds) {
    if (isLive || byId('lost').hidden) {
      const at = new Date().toLocaleTimeString();
      const seen = cards.size ? ` What is shown is how it was at ${at}.` : '';
      setText(byId('lost'), `Not connected: ${why}.${seen}`);
    }
    isLive = false;
    setText(byId('live-text'), 'Not connected');
    setAttribute(byId('live'), 'data-live', 'lost');
    show(byId('lost'), true);
    setAttribute(boards, 'data-stale', '');
    startCountdown(Date.now() + waitSeconds * 1000);
    for (const card of cards.values()) card.setLive(false);
    open?.console.update(cards.get(open.name)?.port ?? null, false);
  },

  event(name, data) {
    if (name === 'ports') {
      showPorts(data.ports.map(portFrom));
      showNotServed(data.not_served);
    } else if (name === 'output') showOutput(data);
  },
};

function startCountdown(until) {
  const tick = () => {
    const left = Math.ceil((until - Date.now()) / 1000);
    setText(byId('live-countdown'), left > 0 ? `, again in ${left} s` : ', trying');
  };
  clearInterval(countdown);
  countdown = setInterval(tick, SECOND_MS);
  tick();
}

function showPorts(ports) {
  const list = byId('cards');
  const names = new Set(ports.map((port) => port.name));
  for (const [name, card] of cards) {
    if (names.has(name)) continue;
    card.element.remove();
    cards.delete(name);
  }
  ports.forEach((port, index) => {
    const card = cards.get(port.name) ?? newCard(port.name);
    card.update(port);
    card.setLive(true);
    if (list.children[index] !== card.element) list.insertBefore(card.element, list.children[index] ?? null);
  });
  showFilters(ports);
  choose();
  showConsole();
  open?.console.update(cards.get(open.name)?.port ?? null, isLive);
}

/** USB devices that no port serves although a board may be on them. */
function showNotServed(devices) {
  const found = Array.isArray(devices) ? devices : [];
  show(byId('not-served'), found.length > 0);
  byId('not-served-devices').replaceChildren(
    ...found.map(({ device, reason }) =>
      make('li', {}, make('span', { class: 'device', text: device }), make('span', { class: 'reason', text: reason })),
    ),
  );
}

function newCard(name) {
  const card = new Card(name, actions);
  cards.set(name, card);
  firstOutput(card);
  return card;
}

async function firstOutput(card) {
  try {
    const { bytes } = await tail(card.name, null, FIRST_OUTPUT_BYTES);
    card.setFirstOutput(new TextDecoder().decode(bytes));
  } catch {
    // What the board says next is shown anyway.
  }
}

function showOutput({ name, data }) {
  cards.get(name)?.addOutput(String(data));
  if (open?.name === name) open.console.heard();
}

// Which boards are shown.

function showFilters(ports) {
  const total = byId('state-filters');
  if (!filterButtons.size) {
    for (const [look, label] of [['', 'All'], ...FILTERS]) {
      const number = make('span', { class: 'number' });
      const button = make('button', { type: 'button', 'aria-pressed': 'false', 'data-look': look }, `${label} `, number);
      button.addEventListener('click', () => {
        chosenLook = chosenLook === look ? '' : look;
        choose();
        announce(`${count(shownCards(), 'board')} shown`);
      });
      filterButtons.set(look, { button, number });
      total.append(button);
    }
  }
  for (const [look, { button, number }] of filterButtons) {
    const found = look ? ports.filter((port) => port.look === look).length : ports.length;
    setText(number, String(found));
    show(button, found > 0 || look === chosenLook || !look);
  }
}

function choose() {
  const wanted = byId('search').value.trim().toLowerCase();
  for (const { port, element } of cards.values()) {
    const words = [port.name, port.device, port.usb, usersOf(port), port.connect, port.tcpPort, port.state];
    const fits = words.join(' ').toLowerCase().includes(wanted);
    show(element, fits && (!chosenLook || port.look === chosenLook));
  }
  for (const [look, { button }] of filterButtons) {
    setAttribute(button, 'aria-pressed', String(look === chosenLook));
  }
  const nothing = cards.size ? 'No board fits.' : 'This gateway serves no ports.';
  setText(byId('empty'), nothing);
  show(byId('empty'), shownCards() === 0);
}

function shownCards() {
  return [...cards.values()].filter((card) => !card.element.hidden).length;
}

// The console, as the address says: #/name.

function showConsole() {
  const found = /^#\/(.+)$/.exec(location.hash);
  const name = found ? decodeURIComponent(found[1]) : '';
  if (open && open.name !== name) closeConsole();
  const card = cards.get(name);
  if (open || !card) return;
  const console = new Console(byId('console'), card.port, actions);
  open = {
    name,
    console,
    get isConnected() {
      return console.isConnected;
    },
  };
  card.element.classList.add('open');
  document.body.classList.add('has-console');
  document.title = `${name} – esp-gateway`;
  console.focus();
}

function closeConsole() {
  const card = cards.get(open.name);
  open.console.close();
  open = null;
  document.body.classList.remove('has-console');
  document.title = 'esp-gateway';
  card?.element.classList.remove('open');
  card?.consoleButton.focus();
}

// Start.

setText(byId('host'), location.host);
onTokenWanted(askForToken);
byId('filter').addEventListener('submit', (event) => event.preventDefault());
byId('search').addEventListener('input', choose);
window.addEventListener('hashchange', showConsole);
document.querySelector('.skip-link').addEventListener('click', (event) => {
  // Followed as a link it would change the address, which names the console that is open.
  event.preventDefault();
  boards.focus();
});
document.addEventListener('keydown', (event) => {
  const inField = event.target.closest?.('input, textarea, select, dialog');
  if (event.key === '/' && !inField && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    byId('search').focus();
  }
});
setInterval(() => {
  for (const card of cards.values()) card.tick(isLive);
}, SECOND_MS);
setInterval(() => {
  for (const card of cards.values()) if (card.hasNews) card.showOutput();
}, OUTPUT_MS);
follow(`${API}/events`, handlers);
