// Values that survive a reload of this tab; the browser deletes them when the tab is closed.

/** Returns the value that was kept under this key; null if there is none, or it cannot be read. */
export function kept(key) {
  try {
    return JSON.parse(sessionStorage.getItem(key));
  } catch {
    return null;
  }
}

/** Keeps a value. If storage is forbidden or full, a reload finds the value that was kept last. */
export function keep(key, value) {
  try {
    sessionStorage.setItem(key, JSON.stringify(value));
  } catch (error) {
    console.warn(`A reload will not find ${key}: ${error.message}`);
  }
}
