"""Captions of composed pictures: templates over label, tags, colours and composition.

Every caption is true: what it says of background, number, size and place comes
from the `Composition`, what it says of colours is counted in the pixels, and the
rest is the emoji's own label and tags, a hand-written alias or a hand-written
sentence in `RICH_CAPTIONS`. Whether it names the picture set is the law's choice
(``laws.py``). Aliases and sentences were written for the Fluent pictures: of another set a
sentence is never said, and an alias only if its colours are in the picture.
"""

import colorsys
import re

import numpy as np
from compose import Composition
from data import Entry
from laws import ONE, Law
from numpy.typing import NDArray

ALIASES = {
    "automobile": ["car", "red car"],
    "sport utility vehicle": ["blue car", "suv"],
    "hamburger": ["burger"],
    "hot beverage": ["cup of coffee", "cup of hot coffee", "cup of tea"],
    "airplane": ["plane"],
    "dog face": ["dog face", "puppy face"],
    "cat face": ["cat face", "kitten face"],
    "french fries": ["fries"],
    "soft ice cream": ["ice cream cone"],
    "wrapped gift": ["gift box", "present"],
    "mobile phone": ["phone", "smartphone"],
    "locomotive": ["steam train"],
    "evergreen tree": ["pine tree", "fir tree"],
    "deciduous tree": ["tree", "green tree"],
    "beer mug": ["glass of beer", "beer"],
    "wine glass": ["glass of red wine", "glass of wine"],
    "birthday cake": ["birthday cake with candles", "cake"],
    "shortcake": ["slice of strawberry cake", "piece of cake"],
    "ear of corn": ["corn", "corn cob"],
    "hatching chick": ["chick in an egg shell"],
    "lady beetle": ["ladybug", "ladybird"],
    "honeybee": ["bee"],
    "sailboat": ["sailing boat", "boat"],
    "soccer ball": ["football"],
    "umbrella": ["purple umbrella"],
    "crescent moon": ["moon", "yellow crescent moon"],
    "fire": ["flame"],
    "high voltage": ["lightning bolt", "flash"],
    "fire engine": ["fire truck"],
    "delivery truck": ["truck"],
    "laptop": ["laptop computer"],
    "person standing": ["person"],
    "light bulb": ["lightbulb", "lamp"],
    "cooked rice": ["bowl of rice"],
    "steaming bowl": ["bowl of noodle soup", "ramen"],
    "fried shrimp": ["fried prawn"],
    "spouting whale": ["blue whale spouting water"],
    "money bag": ["bag of money"],
    "closed book": ["red book"],
    "open book": ["book"],
    "snowman without snow": ["snowman"],
    "smiling face with sunglasses": ["cool smiley with sunglasses"],
    "smiling face with heart-eyes": ["smiley with heart eyes"],
    "face with tears of joy": ["laughing smiley with tears"],
    "grinning face": ["smiley", "happy face"],
    "slightly smiling face": ["smiley face"],
    "sun": ["yellow sun"],
    "pile of poo": ["poop"],
}
RICH_CAPTIONS = {
    "red apple": ["a red apple with a green leaf", "a shiny red apple with a green leaf"],
    "green apple": ["a green apple with a leaf", "a shiny green apple with a brown stem"],
    "pear": ["a green pear with a brown stem"],
    "cherries": ["two red cherries on a green stem", "red cherries with a green leaf"],
    "strawberry": ["a red strawberry with green leaves", "a ripe strawberry with yellow seeds"],
    "banana": ["a peeled yellow banana", "a ripe yellow banana"],
    "lemon": ["a yellow lemon with a green leaf"],
    "tangerine": ["an orange with a green leaf", "an orange fruit with a green leaf"],
    "watermelon": ["a slice of red watermelon with black seeds"],
    "grapes": ["a bunch of purple grapes", "purple grapes with a green leaf"],
    "peach": ["a pink peach with green leaves"],
    "pineapple": ["a yellow pineapple with green leaves"],
    "carrot": ["an orange carrot with green leaves"],
    "tomato": ["a red tomato with a green stem"],
    "pizza": ["a slice of pizza with cheese", "a slice of pizza with salami"],
    "hamburger": ["a burger with cheese, tomato and lettuce"],
    "doughnut": ["a donut with pink icing", "a donut with sprinkles"],
    "cupcake": ["a cupcake with icing"],
    "birthday cake": ["a birthday cake with burning candles"],
    "cookie": ["a brown cookie with chocolate chips"],
    "bread": ["a loaf of bread"],
    "cheese wedge": ["a piece of yellow cheese with holes"],
    "cooking": ["a fried egg in a pan"],
    "rose": ["a red rose with a green stem", "a red rose flower"],
    "tulip": ["a pink tulip with a green stem"],
    "sunflower": ["a yellow sunflower with a green stem"],
    "potted plant": ["a green plant in a pot"],
    "cactus": ["a green cactus with arms"],
    "mushroom": ["a red mushroom with white spots"],
    "palm tree": ["a palm tree with green leaves and a brown trunk"],
    "deciduous tree": ["a green tree with a brown trunk"],
    "cat face": ["the face of a yellow cat", "an orange cat face with whiskers"],
    "dog face": ["the face of a brown dog", "a dog face with its tongue out"],
    "fox": ["the face of an orange fox"],
    "panda": ["the face of a black and white panda"],
    "frog": ["the face of a green frog"],
    "tropical fish": ["a blue and yellow tropical fish"],
    "fish": ["a blue fish"],
    "octopus": ["a red octopus with tentacles"],
    "butterfly": ["a blue butterfly with open wings"],
    "lady beetle": ["a red ladybug with black spots"],
    "turtle": ["a green turtle with a shell"],
    "penguin": ["a black and white penguin"],
    "house": ["a house with a red roof", "a small home with a door and a roof"],
    "house with garden": ["a house with a tree in the garden"],
    "automobile": ["a red car seen from the side"],
    "taxi": ["a yellow taxi seen from the front"],
    "rocket": ["a rocket flying in space", "a red and white rocket"],
    "sailboat": ["a boat with a white sail"],
    "rainbow": ["a rainbow with many colors"],
    "sun with face": ["a smiling yellow sun"],
    "umbrella with rain drops": ["an umbrella in the rain"],
    "snowman": ["a snowman with a hat in the snow"],
    "balloon": ["a red balloon on a string"],
    "wrapped gift": ["a gift with a ribbon and a bow"],
    "christmas tree": ["a decorated christmas tree with a star"],
    "guitar": ["an acoustic guitar"],
    "key": ["an old golden key"],
    "crown": ["a golden crown with jewels"],
    "light bulb": ["a glowing yellow light bulb"],
    "red heart": ["a shiny red heart"],
    "broken heart": ["a red heart broken in two"],
}
NUMBER_WORDS = {2: "two", 3: "three"}
COLOUR_WORDS = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "gray", "black", "white",
)  # fmt: skip
PLURAL = re.compile(r"(?<![su'i])s$|^(scissors|glasses)$")
HEAD = re.compile(r" (?=with|of|on|in|behind|without|showing|from|to|not|and|over|under) ?.*$")


def is_plural(name: str) -> bool:
    """Whether a name already speaks of several."""
    return bool(PLURAL.search(HEAD.split(name)[0]))


def with_article(name: str) -> str:
    """Put a or an before a singular name."""
    if is_plural(name) or name.startswith(("the ", "a ")):
        return name
    return f"{'an' if name[0] in 'aeiou' and not name.startswith(('uni', 'one')) else 'a'} {name}"


def plural(name: str) -> str:
    """Return the plural of a name, changing its head noun only."""
    head = HEAD.split(name)[0]
    rest = name[len(head) :]
    if re.search(r"(s|x|ch|sh)$", head):
        return f"{head}es{rest}"
    if re.search(r"[^aeiou]y$", head):
        return f"{head[:-1]}ies{rest}"
    return f"{head}s{rest}"


def name_colour(red: float, green: float, blue: float) -> str:
    """Name one colour, channels in [0, 1]."""
    hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
    degrees = hue * 360
    if value < 0.2:
        return "black"
    if saturation < 0.12:
        return "white" if value > 0.85 else "gray"
    if degrees < 45 and value < 0.62 and saturation > 0.3 and degrees > 8:
        return "brown"
    if (degrees > 290 or degrees < 12) and saturation < 0.55 and value > 0.75:
        return "pink"
    for limit, name in ((14, "red"), (40, "orange"), (68, "yellow"), (165, "green")):
        if degrees < limit:
            return name
    for limit, name in ((255, "blue"), (300, "purple"), (340, "pink")):
        if degrees < limit:
            return name
    return "red"


def colour_shares(picture: NDArray[np.uint8]) -> dict[str, float]:
    """Return each named colour's share of the opaque pixels, largest first."""
    small = picture[::4, ::4].reshape(-1, 4)
    opaque = small[small[:, 3] > 200, :3] / 255
    if not len(opaque):
        return {}
    names, counts = np.unique([name_colour(*pixel) for pixel in opaque], return_counts=True)
    order = np.argsort(-counts)
    return {str(names[i]): float(counts[i] / counts.sum()) for i in order}


def colour_phrases(name: str, shares: dict[str, float]) -> list[str]:
    """Return phrases that name the colours the name leaves out."""
    unsaid = [c for c, share in shares.items() if share > 0.12 and c not in name]
    phrases = [f"{with_article(name)} with {colour}" for colour in unsaid[:2]]
    main = next(iter(shares), None)
    if main and shares[main] > 0.5 and not any(c in name for c in COLOUR_WORDS):
        phrases.append(with_article(f"{main} {name}"))
    return phrases


def is_fluent(entry: Entry) -> bool:
    """Whether the picture is one that aliases and sentences were written for."""
    return entry["style"].startswith("fluent")


def names_of(entry: Entry, shares: dict[str, float]) -> list[str]:
    """Return the label and those aliases that are true of the picture, each in singular form."""
    aliases = ALIASES.get(entry["label"], [])
    if not is_fluent(entry):
        seen = {colour for colour, share in shares.items() if share > 0.12}
        aliases = [a for a in aliases if seen.issuperset(set(a.split()) & set(COLOUR_WORDS))]
    return [entry["label"], *aliases]


def usable_tags(entry: Entry) -> list[str]:
    """Return tags that are words and say something that the label does not."""
    words = (tag for tag in entry["tags"] if re.fullmatch(r"[a-z]{3,}( [a-z]+)?", tag))
    return [tag for tag in words if tag not in entry["label"]]


def can_count(entry: Entry) -> bool:
    """Whether "two ..." makes sense of the label."""
    return not is_plural(entry["label"]) and not re.search(
        r"\b(two|pair|hands|sun|moon|fire|rain|snow|milky|fog)\b", entry["label"]
    )


def describe(
    entry: Entry,
    composition: Composition,
    shares: dict[str, float],
    rng: np.random.Generator,
    *,
    law: Law = ONE,
) -> str:
    """Draw one true caption of the entry's picture composed this way."""
    name = str(rng.choice(names_of(entry, shares)))
    if rng.random() < 0.5:
        name = entry["label"]
    share = law.sets[entry["style"]]
    style = share.word if share.said == 1 or rng.random() < share.said else ""
    size = "" if composition.size == "normal" or composition.count > 1 else composition.size
    adjectives = " ".join(word for word in (size, style) if word)
    text = " ".join((adjectives, name)).strip()
    if composition.count > 1:
        phrase = f"{NUMBER_WORDS[composition.count]} {plural(text)}"
    elif adjectives:
        phrase = with_article(text)
    else:
        phrase = plain_phrase(entry, name, shares, rng)
    if composition.position:
        phrase = f"{phrase} {composition.position}"
    if composition.background != "white" or rng.random() < 0.06:
        article = "an" if composition.background == "orange" else "a"
        phrase += str(
            rng.choice(
                [
                    f" on {article} {composition.background} background",
                    f", {composition.background} background",
                ],
                p=[0.85, 0.15],
            )
        )
    return phrase


def plain_phrase(
    entry: Entry, name: str, shares: dict[str, float], rng: np.random.Generator
) -> str:
    """Draw a phrase for one thing at its usual size."""
    options: list[tuple[float, str]] = [
        (0.46, with_article(name)),
        (0.14, name),
        (0.06, f"an emoji of {with_article(name)}"),
        (0.06, f"a picture of {with_article(name)}"),
    ]
    if tags := usable_tags(entry):
        options += [(0.1, f"{name}, {rng.choice(tags)}"), (0.05, f"{rng.choice(tags)}, {name}")]
    if colours := colour_phrases(name, shares):
        options.append((0.13, str(rng.choice(colours))))
    if is_fluent(entry) and (rich := RICH_CAPTIONS.get(entry["label"])):
        options.append((0.5, str(rng.choice(rich))))
    weights = np.array([weight for weight, _ in options])
    return options[int(rng.choice(len(options), p=weights / weights.sum()))][1]
