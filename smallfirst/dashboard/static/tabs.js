/* The tabs, by the roles that see them; the first one is what a reader sees first.
 *
 * A tab is a module with `show(root, context)`: it fills the empty element `root` and may return a function that ends
 * its work when the reader leaves. The context has `session` (/v1/dashboard/session), `params` (URLSearchParams of the
 * address), `go(tab, params)` and `say(text)`, which a screen reader reads out. Errors that it throws are shown. */
export const TABS = [
  { id: 'watch', title: 'Watch', roles: ['admin'], load: () => import('./watch.js') },
  { id: 'try', title: 'Try', roles: ['user', 'judge', 'admin'], load: () => import('./try.js') },
];
