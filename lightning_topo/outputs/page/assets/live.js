// The page of a run that goes on: it loads itself again when the next is due, and keeps what was chosen.
// Opened from a folder nothing may be fetched, so it cannot ask whether there is a newer one; where there was none it
// waits twice as long.

const KEPT = "lightning-topo:";
const LONGEST = 600;

function keptChoice() {
  if (!window.name.startsWith(KEPT)) return undefined;
  const kept = JSON.parse(window.name.slice(KEPT.length));
  return kept.path === location.pathname ? kept : undefined;
}

function keepChoice(wait) {
  const whole = chosen.range[0] === full[0] && chosen.range[1] === full[1];
  const newest = Number($("capture").value) >= Number($("capture").max);
  const open = [...document.querySelectorAll("details")].map((node) => node.open);
  window.name = KEPT + JSON.stringify({
    path: location.pathname, stamp: LIVE.stamp, wait, group: chosen.group, range: whole ? null : chosen.range,
    capture: newest ? null : chosen.capture, scroll: [scrollX, scrollY], open,
  });
}

function takeChoice(kept) {
  document.querySelectorAll("details").forEach((node, i) => { if (kept.open[i] !== undefined) node.open = kept.open[i]; });
  if (kept.capture !== null) chosen.capture = kept.capture;
  if (groups.includes(kept.group)) {
    $("group").selectedIndex = groups.indexOf(kept.group);
    setGroup(kept.group);
  }
  if (kept.range) setRange(...kept.range);
  scrollTo(...kept.scroll);
}

function follow(kept) {
  const wait = kept && kept.stamp === LIVE.stamp ? Math.min(2 * kept.wait, LONGEST) : LIVE.seconds;
  const due = Date.now() + 1000 * wait;
  setInterval(() => {
    if (document.hidden || Date.now() < due) return;
    keepChoice(wait);
    location.reload();
  }, 500);
}

const waiting = setInterval(() => {
  if (!charts.length) return;
  clearInterval(waiting);
  const kept = keptChoice();
  if (kept) takeChoice(kept);
  if (LIVE) follow(kept);
  else if (kept) window.name = "";
}, 20);
