/**
 * What xterm.js is given, so that it keeps to `style-src 'self'`. It writes <style> elements and style
 * attributes, which such a policy forbids; the same through the CSSOM is allowed, since only scripts that
 * the policy has let in can do it.
 */

/**
 * The colours of a cell are a style attribute of its <span>, unless they are of the theme's first 16. Those
 * are made by the page's own document, whatever `documentOverride` says, so all of the page's are changed.
 */
HTMLSpanElement.prototype.setAttribute = function setAttribute(name, value) {
  if (name === 'style') this.style.cssText = value;
  else Element.prototype.setAttribute.call(this, name, value);
};

/** `document`, but for the elements that it makes. */
export function strictDocument() {
  const real = document;
  return new Proxy(real, {
    get(target, key) {
      if (key === 'createElement') return createElement;
      const value = Reflect.get(target, key, target);
      return typeof value === 'function' ? value.bind(target) : value;
    },
  });
}

/**
 * Opens a terminal so. One of its parts asks the page's own document whatever `documentOverride` says
 * (a slip in its CoreBrowserService, 6.0.0), so that one is replaced for the moment as well.
 */
export function openStrictly(terminal, parent) {
  document.createElement = createElement;
  try {
    terminal.open(parent);
  } finally {
    delete document.createElement;
  }
}

function createElement(tag, options) {
  if (tag === 'style') return styleElement();
  return Document.prototype.createElement.call(document, tag, options);
}

/**
 * What stands for a <style>: what is written into it goes into a constructed sheet, which lives as long as
 * the element. A real one is complained of by the policy even when it is empty.
 */
function styleElement() {
  const element = Document.prototype.createElement.call(document, 'template');
  const sheet = new CSSStyleSheet();
  document.adoptedStyleSheets = [...document.adoptedStyleSheets, sheet];
  Object.defineProperty(element, 'textContent', {
    get: () => '',
    set: (css) => sheet.replaceSync(css),
  });
  element.remove = () => {
    document.adoptedStyleSheets = document.adoptedStyleSheets.filter((each) => each !== sheet);
    Element.prototype.remove.call(element);
  };
  return element;
}
