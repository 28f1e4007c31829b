document.querySelectorAll("th button").forEach(function (button) {
  button.addEventListener("click", function () {
    var head = button.parentNode, body = head.closest("table").tBodies[0];
    var column = Array.prototype.indexOf.call(head.parentNode.children, head);
    var down = head.getAttribute("aria-sort") !== "descending";
    Array.prototype.forEach.call(head.parentNode.children, function (other) { other.removeAttribute("aria-sort"); });
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    var key = function (row) {
      var cell = row.children[column], value = cell.getAttribute("data-value");
      return value === null ? cell.textContent.trim().toLowerCase() : parseFloat(value);
    };
    Array.prototype.slice.call(body.rows).sort(function (one, two) {
      var a = key(one), b = key(two);
      return (a < b ? -1 : a > b ? 1 : 0) * (down ? -1 : 1);
    }).forEach(function (row) { body.appendChild(row); });
  });
});
