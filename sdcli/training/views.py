"""The far and the near part of each place, painted with a random generator."""

import numpy as np

from sdcli.training.clay import NUMBERS, Canvas, Colour, Stops, blend, dimmed
from sdcli.training.scenery import WHITE, Rng, aside, fir, grass, house, peak, round_tree, scatter, stars, wave


def snow_far(canvas: Canvas, rng: Rng) -> None:
    """Blue peaks, and firs under snow."""
    rock, cap = ((150, 178, 212), (176, 202, 230)), ((250, 252, 255), (232, 242, 252))
    for x in (rng.uniform(0.02, 0.2), rng.uniform(0.8, 0.98), rng.uniform(0.4, 0.6)):
        peak(canvas, x, rng.uniform(0.24, 0.4), rng.uniform(0.26, 0.34), 0.76, rock, cap, 0.25)
    canvas.hill(wave(canvas, rng, 0.66, 0.03), ((228, 238, 250), (196, 216, 240)), "snow", far=0.2)
    for x in (0.05, 0.16, 0.86, 0.96):
        if rng.uniform() < 0.7:
            stops = ((244, 248, 252), (120, 164, 160), (84, 134, 132))
            fir(canvas, x + rng.uniform(-0.03, 0.03), 0.73 + rng.uniform(-0.01, 0.02), rng.uniform(0.2, 0.28), stops)


def snow_ground(canvas: Canvas, rng: Rng) -> None:
    """White ground, a few flakes in the air."""
    canvas.hill(wave(canvas, rng, 0.74, 0.02, 0.7), ((250, 252, 255), (226, 236, 250), (206, 222, 244)), "snow")
    canvas.mottle(rng, "snow", 0.02)
    for _ in range(10):
        canvas.ball(rng.uniform(), rng.uniform(0, 0.7), rng.uniform(0.004, 0.009), (WHITE, WHITE), "", depth=0.0)


def beach_far(canvas: Canvas, rng: Rng) -> None:
    """The sea, calm, with light on its waves."""
    flat = np.full(canvas.size, 0.56 + rng.uniform(-0.02, 0.02), np.float32)
    canvas.hill(flat, ((60, 148, 214), (46, 166, 214), (86, 206, 216)), "water", reach=0.24)
    for _ in range(9):
        x, y = rng.uniform(), rng.uniform(0.59, 0.7)
        wide = rng.uniform(0.03, 0.08) * (y - 0.5) * 5
        canvas.egg(x, y, wide, 0.004, ((150, 220, 238), (150, 220, 238)), "", depth=0.0)


def beach_ground(canvas: Canvas, rng: Rng) -> None:
    """Foam, wet sand, dry sand, some shells."""
    line = wave(canvas, rng, 0.735, 0.012, 1.1)
    canvas.hill(line - 0.018, ((244, 252, 252), (226, 246, 248)), "water")
    canvas.hill(line, ((214, 180, 128), (226, 192, 138)), "sand", reach=0.04)
    canvas.hill(line + 0.03, ((250, 224, 166), (240, 206, 142), (226, 188, 122)), "sand")
    canvas.mottle(rng, "sand", 0.04)
    scatter(canvas, rng, 5, ((252, 240, 226), (244, 172, 150), (250, 220, 190)), 0.012, 0.84, 0.7)


def forest_far(canvas: Canvas, rng: Rng) -> None:
    """Two rows of firs, one in the mist."""
    canvas.hill(wave(canvas, rng, 0.68, 0.02), ((132, 182, 110), (112, 164, 92)), "grass", far=0.4)
    for x in np.linspace(0.03, 0.97, 7):
        fir(canvas, x + rng.uniform(-0.03, 0.03), 0.73, rng.uniform(0.36, 0.5), ((110, 176, 120), (66, 132, 92)), 0.5)
    for x in (0.02, 0.15, 0.85, 0.98):
        fir(canvas, x + rng.uniform(-0.03, 0.03), 0.79, rng.uniform(0.5, 0.66), ((88, 170, 96), (34, 104, 66)))


def forest_ground(canvas: Canvas, rng: Rng) -> None:
    """Moss, bushes at the sides."""
    grass(canvas, rng, 0.755, ((124, 178, 80), (88, 146, 62), (68, 122, 54)))
    for x in (rng.uniform(-0.02, 0.08), rng.uniform(0.92, 1.02)):
        for dx, radius in ((-0.05, 0.05), (0.05, 0.045), (0, 0.062)):
            canvas.ball(x + dx, 0.8, radius, ((110, 184, 90), (54, 122, 62)), "plant", depth=0.6)
    scatter(canvas, rng, 4, ((216, 74, 66), (240, 226, 200)), 0.012, 0.86, 0.7)


def desert_far(canvas: Canvas, rng: Rng) -> None:
    """Flat-topped rocks and dunes."""
    for x in (rng.uniform(0.0, 0.25), rng.uniform(0.75, 1.0)):
        wide, top = rng.uniform(0.08, 0.14), rng.uniform(0.42, 0.52)
        canvas.block(x - wide, top, x + wide, 0.75, ((222, 126, 84), (196, 104, 72)), "mountain", radius=0.035,
                     bevel=0.05, far=0.3)  # fmt: skip
    canvas.hill(wave(canvas, rng, 0.63, 0.035), ((248, 200, 130), (226, 162, 98)), "sand", far=0.15, reach=0.2)


def desert_ground(canvas: Canvas, rng: Rng) -> None:
    """A dune, a cactus at one side."""
    canvas.hill(wave(canvas, rng, 0.73, 0.026, 0.7), ((250, 196, 118), (234, 166, 92), (214, 142, 76)), "sand")
    canvas.mottle(rng, "sand", 0.04)
    for x in (0.07, 0.93):
        if rng.uniform() < 0.6:
            cactus(canvas, x + rng.uniform(-0.03, 0.03), 0.8, rng.uniform(0.2, 0.3))
    scatter(canvas, rng, 4, ((200, 150, 110), (180, 130, 96)), 0.016, 0.84, 0.7)


def cactus(canvas: Canvas, x: float, foot: float, height: float) -> None:
    """A stem with two arms."""
    stops = ((120, 190, 104), (66, 142, 84))
    thick = 0.11 * height
    for side, low in ((-1, 0.34), (1, 0.44)):
        elbow, tip = x + side * 0.3 * height, foot - (low + 0.36) * height
        left, right = min(x, elbow), max(x, elbow)
        level = foot - low * height
        canvas.block(left - thick / 2, level - 0.8 * thick, right + thick / 2, level + 0.8 * thick, stops, "plant",
                     radius=0.05, bevel=0.03)  # fmt: skip
        canvas.block(elbow - 0.8 * thick, tip, elbow + 0.8 * thick, level + 0.8 * thick, stops, "plant", radius=0.05,
                     bevel=0.03)  # fmt: skip
    canvas.block(x - thick, foot - height, x + thick, foot, stops, "plant", radius=0.06, bevel=0.04)


def meadow_far(canvas: Canvas, rng: Rng) -> None:
    """Green hills with small round trees."""
    canvas.hill(wave(canvas, rng, 0.6, 0.04), ((170, 214, 130), (140, 196, 104)), "grass", far=0.35)
    for x in (rng.uniform(0.04, 0.3), rng.uniform(0.7, 0.96)):
        round_tree(canvas, x, 0.66, rng.uniform(0.14, 0.2), ((130, 196, 92), (70, 142, 66)), 0.25)
    canvas.hill(wave(canvas, rng, 0.68, 0.03), ((164, 216, 104), (124, 190, 78)), "grass", far=0.1)


def meadow_ground(canvas: Canvas, rng: Rng) -> None:
    """Grass with flowers."""
    grass(canvas, rng, 0.75)
    scatter(canvas, rng, 16, ((255, 226, 92), (252, 252, 252), (250, 134, 170), (178, 130, 240)), 0.014, 0.79)


def city_far(canvas: Canvas, rng: Rng) -> None:
    """Towers in the haze, and houses with windows before them."""
    for x in np.linspace(0.0, 1.0, 8):
        wide, top = rng.uniform(0.055, 0.08), rng.uniform(0.2, 0.46)
        canvas.block(x - wide, top, x + wide, 0.8, ((176, 190, 214), (164, 178, 206)), "building", radius=0.02,
                     bevel=0.03, far=0.45)  # fmt: skip
    walls = ((244, 160, 122), (120, 150, 214), (246, 206, 128), (156, 196, 168), (214, 132, 150), (230, 224, 216))
    start, x = int(rng.integers(6)), -0.02 - rng.uniform(0, 0.05)
    while x < 1:
        wide, top = rng.uniform(0.14, 0.2), rng.uniform(0.36, 0.56)
        tower(canvas, x, top, x + wide - 0.008, walls[start % 6])
        start, x = start + 1, x + wide


def tower(canvas: Canvas, left: float, top: float, right: float, wall: Colour) -> None:
    """A house of flats with three windows a floor."""
    canvas.block(left, top, right, 0.8, (wall, dimmed(wall, 0.8)), "building", radius=0.016, bevel=0.03)
    lit = canvas.light[0] < 0.5
    pane: Stops = ((255, 230, 140), (255, 208, 104)) if lit else ((190, 226, 246), (150, 196, 230))
    step = (right - left) / 3.4
    for level in np.arange(top + 0.04, 0.7, 0.075):
        for column in range(3):
            x = left + step * (0.45 + column)
            canvas.block(x, level, x + 0.6 * step, level + 0.04, pane, "", radius=0.006, shine=lit, depth=0.15)


def city_ground(canvas: Canvas, rng: Rng) -> None:
    """A pavement, and a street with a broken line."""
    edge = np.full(canvas.size, 0.755, np.float32)
    canvas.hill(edge, ((216, 214, 218), (198, 198, 206)), "ground", reach=0.05)
    canvas.hill(edge + 0.045, ((150, 152, 166), (122, 124, 140), (104, 106, 122)), "ground")
    canvas.mottle(rng, "ground", 0.03)
    shift = rng.uniform(0, 0.25)
    for x in np.arange(-0.2 + shift, 1.1, 0.25):
        canvas.block(x, 0.93, x + 0.13, 0.95, ((250, 246, 232), (240, 236, 222)), "", depth=0.1)


def underwater_air(canvas: Canvas, rng: Rng) -> None:
    """Shafts of light."""
    xs, ys = np.meshgrid(*(2 * [(np.arange(canvas.size) + 0.5) / canvas.size]))
    for x in (rng.uniform(0.1, 0.35), rng.uniform(0.4, 0.6), rng.uniform(0.65, 0.95)):
        beam = np.exp(-(((xs - x + 0.25 * ys) / (0.03 + 0.06 * ys)) ** 2)) * (1 - ys).clip(0, 1)
        canvas.image += (46 * beam)[..., None].astype(np.float32)


def underwater_far(canvas: Canvas, rng: Rng) -> None:
    """Rocks in the blue."""
    for x in (rng.uniform(0.0, 0.2), rng.uniform(0.8, 1.0)):
        canvas.egg(x, 0.8, rng.uniform(0.14, 0.22), rng.uniform(0.14, 0.3), ((60, 140, 190), (30, 96, 158)), "mountain",
                   far=0.5)  # fmt: skip


def underwater_ground(canvas: Canvas, rng: Rng) -> None:
    """A sandy floor with weed and coral, bubbles."""
    canvas.hill(wave(canvas, rng, 0.77, 0.02, 0.7), ((246, 226, 170), (214, 196, 148), (176, 170, 140)), "sand")
    canvas.mottle(rng, "sand", 0.05)
    for x in (0.05, 0.13, 0.88, 0.96):
        weed(canvas, rng, x + rng.uniform(-0.03, 0.03), 0.84 + rng.uniform(-0.02, 0.03), rng.uniform(0.2, 0.42))
    colours = (((255, 150, 140), (230, 96, 116)), ((255, 190, 110), (240, 140, 80)), ((200, 140, 240), (150, 96, 210)))
    for x in (0.2, 0.8):
        if rng.uniform() < 0.6:
            stops, foot = colours[rng.integers(3)], rng.uniform(0.8, 0.85)
            for dx, high in ((-0.03, 0.07), (0.0, 0.11), (0.03, 0.08)):
                canvas.block(x + dx - 0.013, foot - high, x + dx + 0.013, foot, stops, "plant", radius=0.02)
    for _ in range(8):
        canvas.ball(rng.uniform(0.04, 0.96), rng.uniform(0.05, 0.7), rng.uniform(0.007, 0.018),
                    ((222, 246, 252), (150, 214, 240)), "", depth=0.3)  # fmt: skip


def weed(canvas: Canvas, rng: Rng, x: float, foot: float, height: float) -> None:
    """A waving blade."""
    turn, thick = rng.uniform(0, 6.28), 0.016

    def inside(xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
        up = ((foot - ys) / height).clip(0, 1)
        middle = x + 0.025 * np.sin(2 * np.pi * up + turn) * up
        distance: np.ndarray = np.minimum(thick * (1 - 0.75 * up) - np.abs(xs - middle), ys - foot + height)
        return distance

    stops = ((110, 214, 130), (32, 142, 110))
    canvas.shape((x - 0.05, foot - height, x + 0.05, foot), inside, stops, "plant", bevel=0.016)


def mountains_far(canvas: Canvas, rng: Rng) -> None:
    """A chain of peaks with white caps over dark woods."""
    cap = ((255, 255, 255), (228, 238, 250))
    for x, far in ((0.36, 0.45), (0.68, 0.45), (0.1, 0.1), (0.9, 0.1)):
        rock = ((142, 144, 170), (116, 122, 150))
        peak(
            canvas, x + rng.uniform(-0.06, 0.06), rng.uniform(0.12, 0.3), rng.uniform(0.26, 0.36), 0.74, rock, cap, far
        )
    canvas.hill(wave(canvas, rng, 0.68, 0.025), ((124, 182, 104), (100, 158, 88)), "grass", far=0.2)
    for x in rng.uniform(0, 1, 6):
        fir(canvas, x, 0.74, rng.uniform(0.1, 0.15), ((84, 154, 96), (44, 108, 76)), 0.15)


def mountains_ground(canvas: Canvas, rng: Rng) -> None:
    """An alp with stones."""
    grass(canvas, rng, 0.75, ((146, 196, 96), (104, 160, 74), (80, 134, 62)))
    scatter(canvas, rng, 6, ((168, 168, 180), (190, 190, 198)), 0.018, 0.82, 0.7)


def space_air(canvas: Canvas, rng: Rng) -> None:
    """Stars, a nebula, a planet with a ring."""
    canvas.glow(rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.5), 0.3, (110, 60, 170), 0.5)
    stars(canvas, rng, 34, 0.74)
    x, y = aside(rng), rng.uniform(0.16, 0.26)
    planets = (((255, 190, 120), (206, 104, 84)), ((150, 210, 250), (76, 110, 210)), ((250, 170, 200), (176, 88, 170)))
    tilt = rng.uniform(0.15, 0.4)

    def ring(xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
        along, across = xs - x + tilt * (ys - y), (ys - y - tilt * (xs - x)) * 4.2
        return 0.018 - np.abs(np.hypot(along, across) - 0.15)

    def front(xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
        distance: np.ndarray = np.minimum(ring(xs, ys), 0.3 * (ys - y - tilt * (xs - x)))
        return distance

    box = (x - 0.19, y - 0.12, x + 0.19, y + 0.12)
    gold: Stops = ((246, 222, 170), (222, 186, 140))
    canvas.shape(box, ring, gold, "sun or moon", shine=True, depth=0.1)
    canvas.ball(x, y, 0.092, planets[rng.integers(3)], "sun or moon", shine=True, depth=0.7)
    canvas.shape(box, front, gold, "sun or moon", shine=True, depth=0.1)


def space_far(canvas: Canvas, rng: Rng) -> None:
    """Hills of the moon."""
    canvas.hill(wave(canvas, rng, 0.68, 0.03, 0.8), ((140, 142, 164), (110, 112, 138)), "ground", far=0.25)


def space_ground(canvas: Canvas, rng: Rng) -> None:
    """Grey dust with craters."""
    canvas.hill(wave(canvas, rng, 0.75, 0.015, 0.6), ((206, 206, 218), (168, 168, 186), (138, 138, 160)), "ground")
    canvas.mottle(rng, "ground", 0.05)
    for y in np.sort(rng.uniform(0.79, 0.97, 6)):
        x, radius = rng.uniform(0.03, 0.97), 0.018 + 0.12 * (y - 0.75)
        canvas.egg(x, y, 1.16 * radius, 0.5 * radius, ((216, 216, 228), (196, 196, 212)), "", depth=0.2)
        canvas.egg(x, y + 0.1 * radius, radius, 0.38 * radius, ((112, 112, 134), (150, 150, 170)), "", depth=0.0)


def autumn_far(canvas: Canvas, rng: Rng) -> None:
    """Round trees in red, orange and gold."""
    leaves = (((255, 150, 70), (206, 84, 36)), ((255, 204, 84), (228, 146, 40)), ((236, 104, 74), (168, 46, 42)))
    canvas.hill(wave(canvas, rng, 0.67, 0.02), ((226, 190, 110), (206, 164, 88)), "ground", far=0.3)
    for x in np.linspace(0.1, 0.9, 5):
        round_tree(canvas, x + rng.uniform(-0.05, 0.05), 0.73, rng.uniform(0.32, 0.42), leaves[rng.integers(3)], 0.4)
    for x in (0.04, 0.2, 0.8, 0.96):
        round_tree(canvas, x + rng.uniform(-0.04, 0.04), 0.79, rng.uniform(0.46, 0.58), leaves[rng.integers(3)])


def autumn_ground(canvas: Canvas, rng: Rng) -> None:
    """A floor of fallen leaves."""
    canvas.hill(wave(canvas, rng, 0.76, 0.014, 0.7), ((238, 190, 104), (212, 156, 78), (184, 128, 62)), "ground")
    canvas.mottle(rng, "ground", 0.06)
    scatter(canvas, rng, 22, ((226, 92, 44), (252, 188, 70), (196, 58, 44), (244, 138, 56)), 0.015, 0.79, 0.6)


def night_far(canvas: Canvas, rng: Rng) -> None:
    """Blue hills with a few dark firs."""
    canvas.hill(wave(canvas, rng, 0.64, 0.04), ((66, 78, 150), (46, 56, 122)), "grass", far=0.2)
    for x in (rng.uniform(0.02, 0.25), rng.uniform(0.75, 0.98)):
        fir(canvas, x, 0.74, rng.uniform(0.14, 0.22), ((52, 66, 134), (28, 38, 92)), 0.1)


def night_ground(canvas: Canvas, rng: Rng) -> None:
    """Dark grass."""
    grass(canvas, rng, 0.74, ((58, 74, 138), (36, 48, 104), (26, 34, 84)))


def sunset_far(canvas: Canvas, rng: Rng) -> None:
    """The sun going down behind the sea, and its glitter."""
    flat = np.full(canvas.size, 0.56, np.float32)
    canvas.hill(flat, ((236, 128, 110), (176, 84, 122), (110, 62, 116)), "water", reach=0.24)
    for row in range(6):
        y = 0.58 + 0.026 * row
        wide = (0.09 - 0.009 * row) * rng.uniform(0.7, 1.2)
        canvas.egg(
            canvas.bright + rng.uniform(-0.02, 0.02), y, wide, 0.006, ((255, 214, 140), (255, 200, 120)), "", depth=0.0
        )


def sunset_ground(canvas: Canvas, rng: Rng) -> None:
    """A dark shore."""
    canvas.hill(wave(canvas, rng, 0.75, 0.018, 0.8), ((150, 92, 108), (106, 62, 90), (74, 44, 76)), "sand")
    canvas.mottle(rng, "sand", 0.04)


def room_air(canvas: Canvas, rng: Rng) -> None:
    """A wall with a window at one side and a picture at the other."""
    papers = ((250, 226, 200), (206, 226, 232), (226, 214, 240), (216, 232, 206), (250, 214, 208))
    wall = papers[rng.integers(5)]
    canvas.fill((dimmed(wall, 1.02), dimmed(wall, 0.9)), "wall", 0.74)
    side = int(rng.integers(2))
    x, y = 0.2 + 0.6 * side + rng.uniform(-0.03, 0.03), 0.3
    canvas.block(x - 0.14, y - 0.18, x + 0.14, y + 0.18, (WHITE, (232, 230, 228)), "wall", radius=0.02)
    canvas.block(x - 0.115, y - 0.155, x + 0.115, y + 0.155, ((150, 208, 250), (222, 240, 250)), "", depth=0.0)
    canvas.block(x - 0.008, y - 0.16, x + 0.008, y + 0.16, (WHITE, WHITE), "", depth=0.2)
    canvas.block(x - 0.12, y - 0.012, x + 0.12, y + 0.012, (WHITE, WHITE), "", depth=0.2)
    x = 1 - x
    canvas.block(x - 0.1, y - 0.1, x + 0.1, y + 0.08, ((196, 146, 96), (170, 120, 78)), "object", radius=0.012)
    canvas.block(x - 0.08, y - 0.08, x + 0.08, y + 0.06, ((252, 248, 240), (240, 236, 226)), "object", depth=0.0)
    spots = ((250, 150, 130), (120, 180, 220), (250, 206, 110), (140, 196, 140))
    canvas.ball(x, y - 0.01, 0.04, 2 * (spots[rng.integers(4)],), "object", depth=0.0)


def room_ground(canvas: Canvas, rng: Rng) -> None:
    """A skirting board, wooden boards, a round rug."""
    edge = np.full(canvas.size, 0.72, np.float32)
    canvas.hill(edge, ((252, 250, 246), (230, 226, 222)), "wall", reach=0.03)
    canvas.hill(edge + 0.03, ((216, 166, 116), (196, 144, 96), (176, 126, 84)), "ground")
    xs, ys = np.meshgrid(*(2 * [(np.arange(canvas.size) + 0.5) / canvas.size]))
    boards = np.abs((((xs - 0.5) / (ys - 0.42).clip(0.1)) * 4.5 + rng.uniform()) % 1 - 0.5)
    floor = canvas.map == NUMBERS["ground"]
    canvas.image *= np.where(floor & (boards > 0.47), 0.9, 1.0)[..., None].astype(np.float32)
    rugs = ((120, 150, 214), (230, 120, 120), (120, 184, 160), (240, 190, 110), (176, 140, 214))
    rug = rugs[rng.integers(5)]
    pale = blend(rug, WHITE, 0.4)
    canvas.egg(0.5, 0.885, 0.46, 0.085, (rug, rug), "ground", bevel=0.012, depth=0.4)
    canvas.egg(0.5, 0.885, 0.4, 0.068, (pale, pale), "", bevel=0.01, depth=0.1)
    canvas.egg(0.5, 0.885, 0.36, 0.058, (rug, rug), "", bevel=0.01, depth=0.1)


def village_far(canvas: Canvas, rng: Rng) -> None:
    """Small houses on green hills."""
    canvas.hill(wave(canvas, rng, 0.58, 0.03), ((166, 206, 140), (140, 186, 116)), "grass", far=0.4)
    walls, roofs = ((252, 238, 214), (250, 222, 190), (236, 240, 240)), ((226, 96, 76), (206, 120, 80), (110, 140, 190))
    for x, foot, wide, far in (
        (0.34, 0.66, 0.1, 0.35),
        (0.64, 0.66, 0.1, 0.35),
        (0.12, 0.74, 0.2, 0),
        (0.88, 0.74, 0.2, 0),
    ):
        if far == 0 and x < 0.2:
            canvas.hill(wave(canvas, rng, 0.68, 0.015), ((160, 208, 110), (128, 184, 88)), "grass", far=0.1)
        x, wide = x + rng.uniform(-0.05, 0.05), wide * rng.uniform(0.85, 1.2)
        house(canvas, x, foot + rng.uniform(-0.01, 0.01), wide, walls[rng.integers(3)], roofs[rng.integers(3)], far)


def village_ground(canvas: Canvas, rng: Rng) -> None:
    """Grass and a sandy path."""
    grass(canvas, rng, 0.735)
    bend = rng.uniform(-0.15, 0.15)

    def path(xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
        down = (ys - 0.74).clip(0) / 0.26
        return 0.06 + 0.34 * down - np.abs(xs - 0.5 - bend * (1 - down) ** 2)

    canvas.shape((0, 0.765, 1, 1), path, ((240, 218, 172), (222, 192, 142)), "ground", bevel=0.02, depth=0.15)


def farm_far(canvas: Canvas, rng: Rng) -> None:
    """Fields, a red barn at one side, bales of hay at the other."""
    canvas.hill(wave(canvas, rng, 0.58, 0.025), ((236, 214, 124), (216, 190, 98)), "plant", far=0.35)
    canvas.hill(wave(canvas, rng, 0.65, 0.015), ((170, 206, 110), (140, 184, 90)), "grass", far=0.15)
    side = 1 - 2 * int(rng.integers(2))
    x = 0.5 - side * rng.uniform(0.3, 0.36)
    wide = rng.uniform(0.26, 0.3)
    canvas.block(x - wide / 2, 0.5, x + wide / 2, 0.74, ((226, 84, 70), (186, 58, 54)), "building", radius=0.015)
    canvas.cone(x, 0.32, 0.66 * wide, 0.53, ((140, 96, 90), (112, 76, 76)), "building", bevel=0.05, rounding=0.04)
    canvas.block(x - 0.055, 0.6, x + 0.055, 0.74, ((250, 244, 236), (232, 224, 216)), "building", depth=0.3)
    canvas.block(x - 0.04, 0.615, x + 0.04, 0.74, ((176, 60, 54), (150, 48, 46)), "building", depth=0.2)
    for dx in (0.0, 0.13):
        canvas.ball(0.5 + side * (0.26 + dx), 0.715, 0.055, ((250, 216, 120), (216, 168, 74)), "plant", depth=0.6)


def farm_ground(canvas: Canvas, rng: Rng) -> None:
    """A fence at the edge of a meadow."""
    grass(canvas, rng, 0.75)
    wood = ((226, 190, 142), (190, 148, 104))
    for y in (0.725, 0.765):
        canvas.block(-0.02, y - 0.011, 1.02, y + 0.011, wood, "object", radius=0.008)
    for x in np.arange(rng.uniform(0, 0.12), 1.02, 0.17):
        canvas.block(x - 0.014, 0.69, x + 0.014, 0.805, wood, "object", radius=0.014)
