// Moves one point along the routed curve and shows what that threshold gives; unfolds tables for paper.
// The page is whole without it.
(function () {
  var folded = [];
  window.addEventListener("beforeprint", function () {
    folded = Array.prototype.slice.call(document.querySelectorAll("details:not([open])"));
    folded.forEach(function (one) { one.open = true; });
  });
  window.addEventListener("afterprint", function () {
    folded.forEach(function (one) { one.open = false; });
  });
  var data = document.getElementById("curve-data");
  var range = document.getElementById("threshold");
  var point = document.getElementById("moving");
  if (!data || !range || !point) { return; }
  var curve = JSON.parse(data.textContent);
  function show() {
    var at = curve[Number(range.value)];
    point.setAttribute("cx", at.x);
    point.setAttribute("cy", at.y);
    ["threshold", "kept", "errors", "bound", "accuracy", "cost"].forEach(function (name) {
      document.getElementById("at-" + name).textContent = at[name];
    });
    range.setAttribute("aria-valuetext",
      "threshold " + at.threshold + ", " + at.kept + " kept small, accuracy " + at.accuracy);
  }
  range.addEventListener("input", show);
  document.getElementById("mover").hidden = false;
  show();
}());
