// What the page keeps in the browser: the request under work may hold pictures of megabytes,
// which localStorage refuses, so it is kept in IndexedDB.

const NAME = "mezzotint";
const STORE = "kept";

function open(): Promise<IDBDatabase> {
  return new Promise((resolve, reject) => {
    const asked = indexedDB.open(NAME, 1);
    asked.onupgradeneeded = () => asked.result.createObjectStore(STORE);
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => reject(asked.error);
  });
}

function done<T>(asked: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => reject(asked.error);
  });
}

/** Read what was kept; undefined where nothing was, or the browser keeps nothing. */
export async function recall<T>(key: string): Promise<T | undefined> {
  try {
    const db = await open();
    return (await done(db.transaction(STORE).objectStore(STORE).get(key))) as T | undefined;
  } catch {
    return undefined;
  }
}

export async function keep(key: string, value: unknown): Promise<void> {
  try {
    const db = await open();
    await done(db.transaction(STORE, "readwrite").objectStore(STORE).put(value, key));
  } catch {
    // a private window may keep nothing; the page works without
  }
}
