"""The subjects of the world, each with a sprite of Fluent Emoji 3D by its code point.

Data only: does not depend on pixels, places or scenes.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

Spot = tuple[float, float]


@dataclass(frozen=True)
class Subject:
    """A subject of the world.

    `name`, `synonyms`: the words in captions. `code`: the code points of the sprite, in hex. `tall`: the height of the
    sprite divided by its width. `kind`: its class in segmentation maps. `own`: its natural colour, in which it is not
    tinted. `tinted`: whether other colours make sense. `rider`: whether it can ride. `seat`, `top`: where a rider sits
    and where things stand on it, measured from the left and the top of the sprite, as fractions of its width and
    height. `aloft`: whether it hovers. `flip`: whether the sprite faces right and has to be mirrored.
    """

    name: str
    code: str
    tall: float
    kind: str = ""
    own: str = ""
    synonyms: tuple[str, ...] = ()
    tinted: bool = True
    rider: bool = False
    seat: Spot | None = None
    top: Spot | None = None
    aloft: bool = False
    flip: bool = False

    @property
    def width(self) -> float:
        """The width of the sprite in a box of side 1."""
        return min(1.0, 1 / self.tall)

    @property
    def height(self) -> float:
        """The height of the sprite in a box of side 1."""
        return min(1.0, self.tall)

    @property
    def words(self) -> tuple[str, ...]:
        """Its name and synonyms."""
        return (self.name, *self.synonyms)


ANIMALS = (
    Subject("fox", "1f98a", 1.03, own="orange", rider=True),
    Subject("cat", "1f408", 0.96, own="orange", synonyms=("kitten", "kitty"), rider=True),
    Subject("dog", "1f415", 0.89, synonyms=("puppy", "doggy"), rider=True, seat=(0.58, 0.3)),
    Subject("poodle", "1f429", 0.96, rider=True),
    Subject("wolf", "1f43a", 1.00, own="grey"),
    Subject("bear", "1f43b", 0.89, own="brown", rider=True),
    Subject("polar bear", "1f43b-200d-2744-fe0f", 0.89, own="white", synonyms=("ice bear",), rider=True),
    Subject("panda", "1f43c", 0.89, synonyms=("panda bear",), rider=True),
    Subject("koala", "1f428", 0.89, own="grey", synonyms=("koala bear",), rider=True),
    Subject("lion", "1f981", 1.00, rider=True),
    Subject("tiger", "1f405", 0.79, rider=True, seat=(0.58, 0.32)),
    Subject("leopard", "1f406", 0.79, synonyms=("cheetah",), rider=True, seat=(0.58, 0.32)),
    Subject("rabbit", "1f407", 1.00, own="white", synonyms=("bunny", "hare"), rider=True),
    Subject("horse", "1f40e", 1.00, own="brown", synonyms=("pony", "stallion"), seat=(0.58, 0.36)),
    Subject("unicorn", "1f984", 1.00, own="white", seat=(0.86, 0.5)),
    Subject("zebra", "1f993", 1.00, seat=(0.58, 0.36)),
    Subject("donkey", "1facf", 0.85, own="grey", seat=(0.58, 0.36)),
    Subject("deer", "1f98c", 1.00, own="brown", synonyms=("stag", "reindeer"), seat=(0.58, 0.36)),
    Subject("moose", "1face", 0.99, own="brown", synonyms=("elk",)),
    Subject("bison", "1f9ac", 0.86, own="brown", synonyms=("buffalo",), seat=(0.58, 0.06)),
    Subject("cow", "1f404", 0.95, seat=(0.58, 0.25)),
    Subject("bull", "1f402", 0.94, own="brown", synonyms=("ox",), seat=(0.58, 0.18)),
    Subject("pig", "1f416", 0.75, own="pink", synonyms=("piglet",), seat=(0.58, 0.05)),
    Subject("sheep", "1f411", 1.00, own="white", synonyms=("lamb",), seat=(0.58, 0.29)),
    Subject("goat", "1f410", 0.93, seat=(0.58, 0.35)),
    Subject("camel", "1f42b", 1.00, seat=(0.58, 0.23)),
    Subject("llama", "1f999", 1.08, own="white", synonyms=("alpaca",), seat=(0.58, 0.46)),
    Subject("giraffe", "1f992", 1.07, seat=(0.62, 0.42)),
    Subject("elephant", "1f418", 0.82, own="grey", seat=(0.58, 0.0)),
    Subject("mammoth", "1f9a3", 0.92, own="brown", synonyms=("woolly mammoth",), seat=(0.58, 0.03)),
    Subject("rhino", "1f98f", 0.75, own="grey", synonyms=("rhinoceros",), seat=(0.58, 0.1)),
    Subject("hippo", "1f99b", 0.64, own="grey", synonyms=("hippopotamus",), seat=(0.58, 0.06)),
    Subject("mouse", "1f400", 0.99, own="grey", synonyms=("rat",), rider=True),
    Subject("hamster", "1f439", 0.93, rider=True),
    Subject("squirrel", "1f43f-fe0f", 0.96, synonyms=("chipmunk",), rider=True),
    Subject("beaver", "1f9ab", 0.93, own="brown"),
    Subject("hedgehog", "1f994", 0.76, rider=True),
    Subject("bat", "1f987", 1.00, own="brown", aloft=True),
    Subject("sloth", "1f9a5", 0.93),
    Subject("otter", "1f9a6", 0.90, own="brown"),
    Subject("skunk", "1f9a8", 1.00),
    Subject("kangaroo", "1f998", 0.93, rider=True),
    Subject("gorilla", "1f98d", 1.01, synonyms=("ape",), rider=True),
    Subject("monkey", "1f412", 0.88, own="brown", synonyms=("chimpanzee",), rider=True),
    Subject("raccoon", "1f99d", 0.85, rider=True),
    Subject("rooster", "1f413", 1.04, synonyms=("cock",), rider=True),
    Subject("chicken", "1f414", 1.00, own="white", synonyms=("hen",)),
    Subject("chick", "1f425", 0.93, own="yellow", synonyms=("baby chick",), rider=True),
    Subject("bird", "1f426", 1.05, own="red", synonyms=("songbird",), rider=True),
    Subject("crow", "1f426-200d-2b1b", 1.07, own="black", synonyms=("raven", "blackbird"), rider=True),
    Subject("penguin", "1f427", 0.99, rider=True),
    Subject("dove", "1f54a-fe0f", 1.00, own="white", synonyms=("pigeon",), aloft=True),
    Subject("eagle", "1f985", 0.71, own="brown", synonyms=("hawk", "falcon"), aloft=True),
    Subject("duck", "1f986", 1.00, synonyms=("mallard",), rider=True),
    Subject("goose", "1fabf", 1.38, own="brown"),
    Subject("swan", "1f9a2", 0.93, own="white"),
    Subject("owl", "1f989", 1.27, rider=True),
    Subject("flamingo", "1f9a9", 1.28, own="pink"),
    Subject("peacock", "1f99a", 0.94),
    Subject("parrot", "1f99c", 1.16, own="red", synonyms=("macaw",), rider=True),
    Subject("crocodile", "1f40a", 1.00, own="green", synonyms=("alligator",)),
    Subject("turtle", "1f422", 0.62, own="green", synonyms=("tortoise",), seat=(0.56, 0.01)),
    Subject("lizard", "1f98e", 1.31, own="green", synonyms=("gecko",)),
    Subject("snake", "1f40d", 1.00, own="green"),
    Subject("dragon", "1f409", 1.04, own="green", synonyms=("chinese dragon",)),
    Subject("dinosaur", "1f995", 1.00, own="green", synonyms=("brontosaurus", "brachiosaurus"), seat=(0.6, 0.43)),
    Subject(
        "t-rex", "1f996", 0.93, own="green", synonyms=("tyrannosaurus", "trex", "tyrannosaurus rex"), seat=(0.55, 0.36)
    ),
    Subject("frog", "1f438", 0.93, own="green", synonyms=("toad",), rider=True),
    Subject("whale", "1f40b", 1.06, own="blue", synonyms=("blue whale",), seat=(0.45, 0.3)),
    Subject("dolphin", "1f42c", 1.27, own="blue", seat=(0.5, 0.01)),
    Subject("seal", "1f9ad", 0.75, own="grey", synonyms=("sea lion",)),
    Subject("fish", "1f41f", 0.87, own="blue"),
    Subject("tropical fish", "1f420", 0.82),
    Subject("pufferfish", "1f421", 1.08, synonyms=("blowfish",)),
    Subject("shark", "1f988", 1.00, own="grey", seat=(0.4, 0.09)),
    Subject("octopus", "1f419", 0.97, own="orange"),
    Subject("jellyfish", "1fabc", 1.08, own="blue"),
    Subject("crab", "1f980", 0.89, own="red"),
    Subject("lobster", "1f99e", 1.02, own="red"),
    Subject("squid", "1f991", 1.05, own="pink"),
    Subject("snail", "1f40c", 0.99, own="brown", seat=(0.6, 0.11)),
    Subject("butterfly", "1f98b", 0.99, own="red", aloft=True),
    Subject("caterpillar", "1f41b", 0.96, own="green"),
    Subject("ant", "1f41c", 1.00, own="black"),
    Subject("bee", "1f41d", 0.94, synonyms=("honeybee", "bumblebee"), aloft=True),
    Subject("ladybug", "1f41e", 1.00, own="red", synonyms=("ladybird",)),
    Subject("grasshopper", "1f997", 0.65, own="green", synonyms=("cricket",)),
    Subject("spider", "1f577-fe0f", 1.00, own="black"),
    Subject("scorpion", "1f982", 1.07, own="brown"),
)

PEOPLE = (
    Subject("astronaut", "1f9d1-200d-1f680", 1.27, synonyms=("spaceman", "cosmonaut"), rider=True),
    Subject("wizard", "1f9d9", 1.13, synonyms=("sorcerer", "mage"), rider=True),
    Subject("firefighter", "1f9d1-200d-1f692", 1.12, synonyms=("fireman",), rider=True),
    Subject("farmer", "1f9d1-200d-1f33e", 1.14, rider=True),
    Subject("chef", "1f9d1-200d-1f373", 1.21, synonyms=("cook",), rider=True),
    Subject("police officer", "1f46e", 1.15, synonyms=("policeman", "cop"), rider=True),
    Subject("doctor", "1f9d1-200d-2695-fe0f", 1.27, synonyms=("nurse",), rider=True),
    Subject("pilot", "1f9d1-200d-2708-fe0f", 1.27, rider=True),
    Subject("scientist", "1f9d1-200d-1f52c", 1.22, rider=True),
    Subject("artist", "1f9d1-200d-1f3a8", 1.10, synonyms=("painter",), rider=True),
    Subject("builder", "1f477", 1.23, synonyms=("construction worker",), rider=True),
    Subject("detective", "1f575-fe0f", 1.05, synonyms=("spy",), rider=True),
    Subject("ninja", "1f977", 1.11, rider=True),
    Subject("princess", "1f478", 1.14, synonyms=("queen",), rider=True),
    Subject("king", "1fac5", 1.20, synonyms=("prince",), rider=True),
    Subject("superhero", "1f9b8", 1.00, synonyms=("hero",), rider=True),
    Subject("vampire", "1f9db", 1.27, synonyms=("dracula",), rider=True),
    Subject("zombie", "1f9df", 0.98, rider=True),
    Subject("elf", "1f9dd", 1.27, rider=True),
    Subject("fairy", "1f9da", 1.47, synonyms=("pixie",), rider=True, aloft=True),
    Subject("mermaid", "1f9dc", 1.35, rider=True),
    Subject("santa claus", "1f385", 1.07, synonyms=("santa", "father christmas")),
    Subject("man", "1f9cd-200d-2642-fe0f", 3.03, synonyms=("guy",), rider=True),
    Subject("woman", "1f9cd-200d-2640-fe0f", 3.03, synonyms=("lady",), rider=True),
    Subject("boy", "1f466", 1.09),
    Subject("girl", "1f467", 1.01),
    Subject("baby", "1f476", 1.10),
    Subject("dancer", "1f483", 1.14, rider=True),
    Subject("surfer", "1f3c4", 0.98),
)

VEHICLES = (
    Subject("car", "1f697", 0.68, own="red", synonyms=("automobile",), top=(0.5, 0.0)),
    Subject("jeep", "1f699", 0.82, own="blue", synonyms=("suv",), top=(0.5, 0.0)),
    Subject("race car", "1f3ce-fe0f", 0.39, own="red", synonyms=("racing car",)),
    Subject("taxi", "1f695", 0.76, own="yellow", synonyms=("cab",), top=(0.5, 0.04)),
    Subject("police car", "1f693", 0.79, tinted=False, top=(0.5, 0.12)),
    Subject("ambulance", "1f691", 0.79, tinted=False, top=(0.5, 0.0)),
    Subject("fire truck", "1f692", 0.93, own="red", synonyms=("fire engine",), tinted=False, top=(0.5, 0.19)),
    Subject("bus", "1f68c", 0.79, top=(0.5, 0.0)),
    Subject("truck", "1f69a", 0.82, synonyms=("lorry",), top=(0.62, 0.0)),
    Subject("tractor", "1f69c", 0.82, own="green"),
    Subject("motorcycle", "1f3cd-fe0f", 0.67, own="red", synonyms=("motorbike",), seat=(0.62, 0.31)),
    Subject("scooter", "1f6f5", 0.75, own="red", synonyms=("moped",), seat=(0.66, 0.24)),
    Subject("bicycle", "1f6b2", 0.75, own="red", synonyms=("bike",), seat=(0.66, 0.15)),
    Subject("train", "1f682", 0.93, synonyms=("locomotive", "steam train", "steam engine")),
    Subject("tram", "1f68b", 0.96, synonyms=("streetcar",)),
    Subject("airplane", "2708-fe0f", 1.00, synonyms=("plane", "aeroplane", "jet"), aloft=True, flip=True),
    Subject("helicopter", "1f681", 0.93, own="orange", synonyms=("chopper",), aloft=True),
    Subject("rocket", "1f680", 0.99, synonyms=("spaceship", "spacecraft"), aloft=True, flip=True),
    Subject("ufo", "1f6f8", 0.85, synonyms=("flying saucer",), aloft=True),
    Subject("sailboat", "26f5", 1.00, synonyms=("boat", "sailing boat", "yacht")),
    Subject("ship", "1f6a2", 0.94),
    Subject("speedboat", "1f6a4", 0.65, own="orange", synonyms=("motorboat",)),
    Subject("sled", "1f6f7", 0.64, synonyms=("sleigh",), seat=(0.5, 0.0)),
)

BUILDINGS = (
    Subject("castle", "1f3f0", 1.06, synonyms=("fortress",), top=(0.5, 0.04)),
    Subject("pagoda", "1f3ef", 1.00, synonyms=("japanese castle",)),
    Subject("house", "1f3e0", 0.96, synonyms=("home", "cottage")),
    Subject("hut", "1f6d6", 0.97, own="brown", synonyms=("cabin",)),
    Subject("church", "26ea", 1.00, synonyms=("chapel",)),
    Subject("mosque", "1f54c", 0.93, tinted=False),
    Subject("temple", "1f3db-fe0f", 1.04, synonyms=("greek temple",)),
    Subject("factory", "1f3ed", 1.00),
    Subject("skyscraper", "1f3e2", 1.00, synonyms=("office building",)),
    Subject("tent", "26fa", 0.87, own="green"),
    Subject("circus tent", "1f3aa", 1.07, synonyms=("circus",)),
    Subject("fountain", "26f2", 1.04),
    Subject("ferris wheel", "1f3a1", 1.17, tinted=False),
    Subject("statue", "1f5ff", 1.03, own="grey", synonyms=("stone head", "easter island head")),
)

FOOD = (
    Subject("pizza", "1f355", 1.12, synonyms=("pizza slice",), tinted=False),
    Subject("hamburger", "1f354", 0.82, synonyms=("burger", "cheeseburger"), tinted=False, top=(0.5, 0.0)),
    Subject("hot dog", "1f32d", 1.00, tinted=False),
    Subject("taco", "1f32e", 0.71, tinted=False),
    Subject("sandwich", "1f96a", 0.93, tinted=False),
    Subject("french fries", "1f35f", 1.08, synonyms=("fries",), tinted=False),
    Subject("sushi", "1f363", 0.85, tinted=False),
    Subject("ramen", "1f35c", 1.08, synonyms=("noodles", "bowl of noodles"), tinted=False),
    Subject("spaghetti", "1f35d", 1.01, synonyms=("pasta",), tinted=False),
    Subject("bread", "1f35e", 0.96, own="brown", synonyms=("loaf of bread",), top=(0.5, 0.01)),
    Subject("croissant", "1f950", 1.01, tinted=False),
    Subject("pretzel", "1f968", 0.77, tinted=False),
    Subject("pancakes", "1f95e", 0.97, synonyms=("stack of pancakes",), tinted=False),
    Subject("cheese", "1f9c0", 1.11, own="yellow", synonyms=("piece of cheese",), top=(0.5, 0.02)),
    Subject("egg", "1f95a", 1.35, own="brown"),
    Subject("donut", "1f369", 1.14, synonyms=("doughnut",)),
    Subject("cookie", "1f36a", 1.00, synonyms=("biscuit",)),
    Subject("cake", "1f382", 0.99, synonyms=("birthday cake",), top=(0.5, 0.22)),
    Subject("cupcake", "1f9c1", 1.17, synonyms=("muffin",)),
    Subject("ice cream", "1f366", 1.36, synonyms=("ice cream cone",)),
    Subject("lollipop", "1f36d", 1.00, tinted=False),
    Subject("popcorn", "1f37f", 1.36, tinted=False),
    Subject("apple", "1f34e", 0.96, own="red"),
    Subject("pear", "1f350", 1.07, own="green"),
    Subject("orange", "1f34a", 1.22, synonyms=("tangerine",), tinted=False),
    Subject("lemon", "1f34b", 1.00, own="yellow"),
    Subject("banana", "1f34c", 0.96, own="yellow"),
    Subject("pineapple", "1f34d", 1.29, own="yellow"),
    Subject("watermelon", "1f349", 1.00, synonyms=("slice of watermelon",), tinted=False),
    Subject("grapes", "1f347", 1.11, own="purple", synonyms=("bunch of grapes",)),
    Subject("strawberry", "1f353", 1.40, own="red"),
    Subject("cherries", "1f352", 0.96, own="red", synonyms=("cherry",)),
    Subject("peach", "1f351", 1.00),
    Subject("avocado", "1f951", 1.03, own="green", tinted=False),
    Subject("tomato", "1f345", 0.90, own="red"),
    Subject("eggplant", "1f346", 1.01, own="purple", synonyms=("aubergine",)),
    Subject("carrot", "1f955", 0.98, own="orange"),
    Subject("corn", "1f33d", 1.13, own="yellow", synonyms=("corn cob",)),
    Subject("broccoli", "1f966", 1.05, own="green"),
    Subject("coffee", "2615", 1.04, synonyms=("cup of coffee",), tinted=False),
    Subject("tea", "1f375", 1.00, synonyms=("cup of tea",), tinted=False),
    Subject("bubble tea", "1f9cb", 1.40, synonyms=("boba",), tinted=False),
    Subject("beer", "1f37a", 1.09, synonyms=("mug of beer",), tinted=False),
)

TREES = (
    Subject("tree", "1f333", 1.22, own="green", synonyms=("oak",)),
    Subject("pine tree", "1f332", 1.31, own="green", synonyms=("fir tree", "pine")),
    Subject("christmas tree", "1f384", 1.56, own="green"),
    Subject("palm tree", "1f334", 1.17, synonyms=("palm",)),
)

PLANTS = (
    Subject("cactus", "1f335", 1.09, own="green"),
    Subject("sunflower", "1f33b", 1.29, own="yellow"),
    Subject("tulip", "1f337", 1.53, own="pink"),
    Subject("rose", "1f339", 1.71, own="red"),
    Subject("flower", "1f33c", 1.25, own="white", synonyms=("daisy",)),
    Subject("cherry blossom", "1f338", 0.97, own="pink", synonyms=("blossom",)),
    Subject("lotus", "1fab7", 0.94, own="pink", synonyms=("water lily",)),
    Subject("maple leaf", "1f341", 1.04, own="red", synonyms=("leaf",)),
    Subject("mushroom", "1f344", 1.02, own="red", synonyms=("toadstool",)),
    Subject("potted plant", "1fab4", 1.50, synonyms=("houseplant",)),
    Subject("coral", "1fab8", 1.01, own="orange"),
)

THINGS = (
    Subject("robot", "1f916", 1.00, synonyms=("android",), rider=True),
    Subject("ghost", "1f47b", 1.00, own="white"),
    Subject("alien", "1f47d", 1.00, own="green", synonyms=("extraterrestrial",), rider=True),
    Subject("monster", "1f47e", 0.93, own="purple", synonyms=("space invader",)),
    Subject("skull", "1f480", 1.00, own="white"),
    Subject("snowman", "26c4", 1.18, own="white"),
    Subject("teddy bear", "1f9f8", 1.00, own="brown", synonyms=("teddy",), rider=True),
    Subject("pumpkin", "1f383", 0.93, own="orange", synonyms=("jack-o-lantern",), top=(0.5, 0.05)),
    Subject("volcano", "1f30b", 1.17),
    Subject("soccer ball", "26bd", 0.99, synonyms=("football",)),
    Subject("basketball", "1f3c0", 1.00, own="orange"),
    Subject("guitar", "1f3b8", 0.96, synonyms=("electric guitar",)),
    Subject("violin", "1f3bb", 1.01, own="brown", synonyms=("fiddle",)),
    Subject("trumpet", "1f3ba", 0.99, own="yellow"),
    Subject("drum", "1f941", 1.00, own="red", top=(0.5, 0.06)),
    Subject("balloon", "1f388", 1.36, own="red", aloft=True),
    Subject("gift", "1f381", 1.06, synonyms=("present", "gift box"), top=(0.5, 0.04)),
    Subject("kite", "1fa81", 1.00, tinted=False, aloft=True),
    Subject("umbrella", "2602-fe0f", 1.00, own="purple", synonyms=("parasol",)),
    Subject("crown", "1f451", 0.82, own="yellow"),
    Subject("top hat", "1f3a9", 0.94, own="black", synonyms=("hat",)),
    Subject("dress", "1f457", 1.14, own="blue"),
    Subject("boot", "1f462", 1.01, own="red", flip=True),
    Subject("backpack", "1f392", 1.27, own="red", synonyms=("school bag",)),
    Subject("suitcase", "1f9f3", 1.56, own="blue", synonyms=("luggage",), top=(0.5, 0.0)),
    Subject("diamond", "1f48e", 0.79, own="blue", synonyms=("gem",)),
    Subject("ring", "1f48d", 1.32, synonyms=("diamond ring",)),
    Subject("teapot", "1fad6", 0.89, own="red"),
    Subject("lantern", "1f3ee", 1.59, own="red"),
    Subject("light bulb", "1f4a1", 1.62, own="yellow", synonyms=("bulb",)),
    Subject("candle", "1f56f-fe0f", 2.33),
    Subject("camera", "1f4f7", 0.68, synonyms=("photo camera",)),
    Subject("television", "1f4fa", 1.07, synonyms=("tv",), top=(0.5, 0.11)),
    Subject("laptop", "1f4bb", 1.01, synonyms=("computer",)),
    Subject("telephone", "260e-fe0f", 0.82, own="red", synonyms=("phone",)),
    Subject("clock", "23f0", 1.13, own="red", synonyms=("alarm clock",)),
    Subject("book", "1f4d5", 1.27, own="red", top=(0.5, 0.0)),
    Subject("chair", "1fa91", 1.45, own="brown", top=(0.5, 0.56)),
    Subject("sofa", "1f6cb-fe0f", 1.00, own="blue", synonyms=("couch",), top=(0.42, 0.74)),
    Subject("bed", "1f6cf-fe0f", 0.71, top=(0.6, 0.36)),
    Subject("bathtub", "1f6c1", 1.01, synonyms=("bath",)),
    Subject("box", "1f4e6", 1.17, own="brown", synonyms=("cardboard box", "package"), top=(0.5, 0.02)),
    Subject("barrel", "1f6e2-fe0f", 1.40, own="blue", synonyms=("oil drum",), top=(0.5, 0.07)),
    Subject("hammer", "1f528", 0.96),
    Subject("sword", "1f5e1-fe0f", 1.00, synonyms=("dagger",)),
    Subject("anchor", "2693", 1.05, own="blue"),
    Subject("trophy", "1f3c6", 1.22, own="yellow", synonyms=("golden cup",)),
    Subject("key", "1f511", 1.00, own="yellow"),
    Subject("heart", "2764-fe0f", 0.88, own="red"),
    Subject("star", "2b50", 1.00, own="yellow"),
    Subject("planet", "1fa90", 1.00, own="yellow", synonyms=("saturn",), aloft=True),
    Subject("earth", "1f30d", 1.00, synonyms=("globe",), tinted=False, aloft=True),
    Subject("rock", "1faa8", 1.00, own="grey", synonyms=("stone", "boulder"), top=(0.5, 0.04)),
    Subject("log", "1fab5", 1.11, own="brown", synonyms=("tree stump",), top=(0.5, 0.0)),
)


def of_kind(kind: str, rows: Iterable[Subject]) -> Iterator[Subject]:
    """Yield the subjects with their kind. People are not tinted."""
    return (replace(row, kind=kind, tinted=row.tinted and kind != "person") for row in rows)


SUBJECTS: tuple[Subject, ...] = (
    *of_kind("animal", ANIMALS),
    *of_kind("person", PEOPLE),
    *of_kind("vehicle", VEHICLES),
    *of_kind("building", BUILDINGS),
    *of_kind("food", FOOD),
    *of_kind("tree", TREES),
    *of_kind("plant", PLANTS),
    *of_kind("object", THINGS),
)
BY_NAME: Mapping[str, Subject] = {subject.name: subject for subject in SUBJECTS}
