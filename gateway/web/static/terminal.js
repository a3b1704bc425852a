/** xterm.js as the consoles use it: its looks, what is left out of it, and a bound for floods. */

import { FitAddon } from './vendor/xterm/addon-fit.js';
import { Terminal } from './vendor/xterm/xterm.js';
import { openStrictly, strictDocument } from './xterm_document.js';

const SCROLLBACK_LINES = 5000;

/** What may wait to be drawn; what comes beyond is left out, and said. xterm.js itself dies at 50 MB. */
const MOST_UNDRAWN_BYTES = 2 << 20;

/** Device attributes, device status, mode and window reports. */
const QUESTIONS = [
  { final: 'c' },
  { prefix: '>', final: 'c' },
  { prefix: '=', final: 'c' },
  { final: 'n' },
  { prefix: '?', final: 'n' },
  { intermediates: '$', final: 'p' },
  { prefix: '?', intermediates: '$', final: 'p' },
  { final: 't' },
];

const THEMES = {
  light: {
    background: '#ffffff', foreground: '#1f2328', cursor: '#0969da', cursorAccent: '#ffffff',
    selectionBackground: '#b6d7ff', black: '#24292f', red: '#b3151f', green: '#116329',
    yellow: '#7a4b00', blue: '#0550ae', magenta: '#6f3cc3', cyan: '#12616b', white: '#57606a',
    brightBlack: '#57606a', brightRed: '#a40e26', brightGreen: '#1a7f37', brightYellow: '#633c01',
    brightBlue: '#0a69da', brightMagenta: '#8250df', brightCyan: '#1b7c83', brightWhite: '#6e7781',
  },
  dark: {
    background: '#0b0e13', foreground: '#d6dde6', cursor: '#6cb6ff', cursorAccent: '#0b0e13',
    selectionBackground: '#1f4a7a', black: '#6b7684', red: '#ff7b72', green: '#56d364',
    yellow: '#e3b341', blue: '#79c0ff', magenta: '#d2a8ff', cyan: '#56d4dd', white: '#d6dde6',
    brightBlack: '#8b96a5', brightRed: '#ffa198', brightGreen: '#7ee787', brightYellow: '#f2cc60',
    brightBlue: '#a5d6ff', brightMagenta: '#e2c5ff', brightCyan: '#7fe7ee', brightWhite: '#ffffff',
  },
};

/** A terminal in `parent`. `typed(text)` is called with what the person types, `leave()` at Ctrl ]. */
export class ConsoleTerminal {
  constructor(parent, { label, typed, leave }) {
    this.undrawn = 0;
    this.left = 0;
    this.quiet = 0;
    this.dark = window.matchMedia('(prefers-color-scheme: dark)');
    this.terminal = new Terminal({
      documentOverride: strictDocument(),
      scrollback: SCROLLBACK_LINES,
      convertEol: true,
      cursorBlink: false,
      cursorInactiveStyle: 'outline',
      fontFamily: 'ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace',
      fontSize: 13,
      minimumContrastRatio: 4.5,
      // A link in a board's output could lead anywhere: it stays text.
      linkHandler: { activate() {} },
      // What a board sends at a wrong baud rate is no error of the page.
      logLevel: 'off',
      theme: this.theme(),
    });
    this.fit = new FitAddon();
    this.terminal.loadAddon(this.fit);
    openStrictly(this.terminal, parent);
    this.terminal.textarea.setAttribute('aria-label', label);
    this.terminal.attachCustomKeyEventHandler((event) => {
      const leaves = event.ctrlKey && (event.key === ']' || event.code === 'BracketRight');
      if (leaves && event.type === 'keydown') {
        event.preventDefault();
        leave();
      }
      return !leaves;
    });
    this.terminal.onData(typed);
    this.terminal.onBinary(typed);
    this.answerOnce();
    this.recolour = () => {
      this.terminal.options.theme = this.theme();
    };
    this.dark.addEventListener('change', this.recolour);
    this.observer = new ResizeObserver(() => this.fit.fit());
    this.observer.observe(parent);
    this.fit.fit();
  }

  /** What old output asked a terminal for, where the cursor is for instance, is not answered again. */
  answerOnce() {
    const { parser } = this.terminal;
    const isOld = () => this.quiet > 0;
    for (const question of QUESTIONS) parser.registerCsiHandler(question, isOld);
    parser.registerDcsHandler({ intermediates: '$', final: 'q' }, isOld);
    for (const colours of [4, 10, 11, 12]) {
      parser.registerOscHandler(colours, (text) => isOld() && text.includes('?'));
    }
  }

  theme() {
    return THEMES[this.dark.matches ? 'dark' : 'light'];
  }

  /** Draws bytes of the board; `old` ones were sent before the console connected. */
  write(bytes, { old = false } = {}) {
    if (this.undrawn > MOST_UNDRAWN_BYTES) {
      this.left += bytes.length;
      return;
    }
    this.undrawn += bytes.length;
    if (old) this.quiet += 1;
    this.terminal.write(bytes, () => {
      this.undrawn -= bytes.length;
      if (old) this.quiet -= 1;
      if (this.left && this.undrawn < MOST_UNDRAWN_BYTES / 2) {
        const left = this.left;
        this.left = 0;
        this.note(`${left} bytes came faster than they could be drawn: they are in the log`);
      }
    });
  }

  /** A line of the page's own among the board's; `text` is made harmless. */
  note(text) {
    const harmless = text.replace(/[\x00-\x1f\x7f-\x9f]/g, ' ');
    this.terminal.write(`\r\n\x1b[0;2;3m--- ${harmless} ---\x1b[0m\r\n`);
  }

  /** Whether a screen reader reads each line; off, since a board's flood would drown all else. */
  readAloud(wanted) {
    this.terminal.options.screenReaderMode = wanted;
  }

  focus() {
    this.terminal.focus();
  }

  clear() {
    this.terminal.clear();
  }

  dispose() {
    this.dark.removeEventListener('change', this.recolour);
    this.observer.disconnect();
    this.terminal.dispose();
  }
}
