/** Questions and short notices: native dialogs, which keep the focus and end with Escape. */

import { make } from './dom.js';

const TOAST_MS = 8_000;

/** Asks before the work of another user is disturbed; true to go on. */
export async function confirmDisturbance({ title, text, action }) {
  const answer = await ask(
    title,
    [make('p', { text })],
    [
      make('button', { value: '', autofocus: true, text: 'Cancel' }),
      make('button', { value: 'yes', class: 'danger', text: action }),
    ],
  );
  return answer === 'yes';
}

/** Asks for the gateway's token; null when the person has none. */
export async function askForToken(why) {
  const input = make('input', {
    type: 'password',
    name: 'token',
    autocomplete: 'current-password',
    required: true,
    autofocus: true,
  });
  const answer = await ask(
    'This gateway requires a token',
    [
      make('p', { text: 'It is in the gateway’s configuration. This tab keeps it until it is closed.' }),
      why ? make('p', { class: 'problem', role: 'alert', text: why }) : '',
      make('label', { class: 'field' }, 'Token', input),
    ],
    [
      make('button', { value: '', formnovalidate: true, text: 'Cancel' }),
      make('button', { value: 'yes', class: 'primary', text: 'Use it' }),
    ],
  );
  return answer === 'yes' && input.value.trim() ? input.value.trim() : null;
}

function ask(title, content, buttons) {
  const heading = make('h2', { id: 'dialog-title', text: title });
  // Enter takes the last button, the one that answers yes, only where it is focused or in a field.
  const form = make('form', { method: 'dialog' }, heading, ...content.filter(Boolean));
  form.append(make('p', { class: 'dialog-buttons' }, ...buttons));
  const dialog = make('dialog', { 'aria-labelledby': 'dialog-title' }, form);
  form.addEventListener('keydown', (event) => {
    if (event.key === 'Enter' && event.target instanceof HTMLInputElement) {
      event.preventDefault();
      buttons.at(-1).click();
    }
  });
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener('close', () => {
      dialog.remove();
      resolve(dialog.returnValue);
    });
  });
}

/** Says that something was done, or why not; `problem` stays until it is closed. */
export function toast(text, { problem = false } = {}) {
  const close = make('button', { class: 'quiet', 'aria-label': 'Close notice', text: '×' });
  const box = make(
    'div',
    { class: problem ? 'toast problem' : 'toast', role: problem ? 'alert' : 'status' },
    make('span', { text }),
    close,
  );
  close.addEventListener('click', () => box.remove());
  const toasts = document.getElementById('toasts');
  toasts.append(box);
  while (toasts.children.length > 3) toasts.firstElementChild.remove();
  if (!problem) setTimeout(() => box.remove(), TOAST_MS);
}

const waiting = [];
let speaking = 0;

/** Tells a screen reader; what comes within a moment is said in one go, a crowd as a number. */
export function announce(text) {
  waiting.push(text);
  speaking ||= setTimeout(() => {
    speaking = 0;
    const all = waiting.splice(0);
    document.getElementById('announcer').textContent =
      all.length > 3 ? `${all.length} boards have changed` : all.join('. ');
  }, 700);
}

/** Puts text onto the clipboard; also where the page has come over plain http. */
export async function copy(text) {
  if (navigator.clipboard) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      // Not allowed: the way below often is.
    }
  }
  const area = make('textarea', { class: 'visually-hidden', readonly: true, 'aria-hidden': 'true' });
  const focused = document.activeElement;
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand('copy');
  area.remove();
  focused?.focus();
  return done;
}
