"""A hand for the browser's tests: draws on a canvas with the mouse, a finger or a pen."""

import math

TURNS = 40  # points of a circle


def points_of_circle(box, centre, radius):
    """Places on the page, closed; centre and radius are parts of the canvas's box."""
    angles = (2 * math.pi * k / TURNS for k in range(TURNS + 1))
    x, y, side = box["x"], box["y"], box["width"]
    return [
        (x + side * (centre[0] + radius * math.cos(a)), y + side * (centre[1] + radius * math.sin(a)))
        for a in angles
    ]


def draw_line(page, points):
    """With the mouse, from the first point to the last."""
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point)
    page.mouse.up()


def draw_circle(page, canvas, centre=(0.5, 0.5), radius=0.3):
    """With the mouse, on a locator's canvas."""
    canvas.scroll_into_view_if_needed()
    draw_line(page, points_of_circle(canvas.bounding_box(), centre, radius))


def draw_with_finger(page, points):
    """As a touch screen reports it."""
    session = page.context.new_cdp_session(page)
    kinds = ["touchStart", *["touchMove"] * (len(points) - 1)]
    for kind, (x, y) in zip(kinds, points, strict=True):
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    session.detach()


def draw_with_pen(canvas, points, pressures):
    """A pen's events at parts of the canvas, each with its pressure from 0 to 1."""
    canvas.evaluate(
        """(node, [points, pressures]) => {
          const box = node.getBoundingClientRect();
          const pen = { pointerType: "pen", pointerId: 7, button: 0, bubbles: true, cancelable: true };
          points.forEach(([x, y], k) => {
            const at = { clientX: box.x + x * box.width, clientY: box.y + y * box.height };
            const kind = k ? "pointermove" : "pointerdown";
            node.dispatchEvent(new PointerEvent(kind, { ...pen, ...at, pressure: pressures[k] }));
          });
          node.dispatchEvent(new PointerEvent("pointerup", pen));
        }""",
        [points, pressures],
    )
