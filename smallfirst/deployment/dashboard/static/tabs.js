/* The tabs, by the roles that see them; the first one is what a reader sees first.
 *
 * A tab is a module with `show(root, context)`: it fills the empty element `root` and may return a function that ends
 * its work when the reader leaves. The context has `session` (/v1/dashboard/session), `params` (URLSearchParams of the
 * address), `go(tab, params)` and `say(text)`, which a screen reader reads out. Errors that it throws are shown. `at` says
 * where there is such a tab: at a server unless it says otherwise, or at a proxy. */
export const TABS = [
  { id: 'tasks', title: 'Tasks', at: ['proxy'], roles: ['admin'], load: () => import('./tasks.js') },
  { id: 'watch', title: 'Watch', at: ['server', 'proxy'], roles: ['admin'], load: () => import('./watch.js') },
  { id: 'queue', title: 'Mark', roles: ['judge', 'admin'], load: () => import('./queue.js') },
  { id: 'try', title: 'Try', roles: ['user', 'judge', 'admin'], load: () => import('./try.js') },
];
