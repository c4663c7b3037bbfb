// What survives a reload of this tab, and nothing else: the browser drops it when the tab is closed.

/** The value that was kept under this key; null if there is none that can be read. */
export function kept(key) {
  try {
    return JSON.parse(sessionStorage.getItem(key));
  } catch {
    return null;
  }
}

/** Keeps a value. Where storage is forbidden or full, the page goes on, and a reload begins with what was kept last. */
export function keep(key, value) {
  try {
    sessionStorage.setItem(key, JSON.stringify(value));
  } catch (error) {
    console.warn(`A reload will not find ${key}: ${error.message}`);
  }
}
