"""The text that the tiny golden tokenizers are trained on, and the texts that are embedded.

Plain sentences written for this file, so that the fixtures need no download and carry no foreign
licence. They cover everyday words, so that the tiny vocabularies cut ordinary English into pieces
of a plausible length, plus a little French, German, Chinese, Russian and Arabic.
"""

ENGLISH = """
The quick brown fox jumps over the lazy dog near the old river bank.
A fast auburn animal leaped across the water and ran into the forest.
Search engines turn every document into a vector and compare it with the vector of the question.
How do I reset my password when the email never arrives?
The meeting was moved from Monday to Thursday because the train was late.
She opened the window, looked at the sea and thought about her first summer in the city.
Please send the invoice to the finance department before the end of the month.
The engine reads a model, packs the tokens of many texts together and writes one vector per text.
A small bakery on the corner sells fresh bread, apple cake and strong coffee every morning.
Scientists measured the temperature of the ocean at a depth of two thousand metres.
What is the capital of France, and how many people live there?
The football team won the final match after extra time and a long series of penalties.
Memory is limited, so the program keeps only the current batch and never the whole file.
He repaired the bicycle with a few simple tools and rode home through the rain.
The doctor said that sleep, walking and good food help more than most medicine.
Parallel threads share the work: each one takes a block of sentences through the encoder.
The price of oil fell again while the demand for copper and silver kept rising.
Children played in the garden until the sun went down behind the mountains.
An error message should say what was wrong, where it happened and what to do next.
The museum shows paintings, letters and machines from the nineteenth century.
My neighbour's cat sleeps on the warm roof of the car all afternoon.
The government announced a new law about clean energy and public transport.
To install the package, run the command below and restart the server.
Light travels faster than sound, which is why we see the storm before we hear it.
The library lends books, films and games to everyone who lives in the town.
She wrote the report in two days; nobody read it for two years.
Is it cheaper to rent a flat or to buy a house in the north of the country?
The recipe needs three eggs, some butter, a cup of sugar and a little salt.
A neural network is a function with many numbers that were found by training.
The bridge was closed after the flood and reopened in early spring.
He asked the teacher a difficult question, and she answered it with a story.
The phone's battery lasts one day, the camera is good and the screen is bright.
Doctors, nurses and patients waited for the results of the test.
It was the best of times, it was the worst of times, wrote a famous author.
The plane landed safely although one of the engines had stopped working.
Customers can return any product within thirty days and get their money back.
The river carries sand and stones from the hills down to the sea.
We compared the numbers from the first experiment with those of the second.
There are 365 days in a year, 24 hours in a day and 60 minutes in an hour.
Version 2.0 was released on 14 March 2021; it fixed 37 bugs and added 5 features.
The farmer planted wheat, corn and beans on the dry land behind the house.
Music from the open door mixed with the noise of the street and the voices of people.
""".strip().splitlines()

OTHER = """
Le chat noir dort sur le toit de la maison pendant que la pluie tombe doucement.
L'été dernier, nous avons visité un château près de la forêt et mangé des crêpes.
Où est la gare, s'il vous plaît ? Elle est à côté de l'hôtel.
Der schnelle Fuchs springt über den faulen Hund und läuft in den grünen Wald.
Die Straße war naß, größer und länger, als wir gedacht hätten.
Быстрая лиса прыгает через ленивую собаку у старой реки.
我们 今天 去 图书馆 看 书 , 明天 去 公园。
السلام عليكم ورحمة الله وبركاته
""".strip().splitlines()

# The texts of reference.jsonl: ordinary, empty, blank, hostile and overlong.
TEXTS = [
    "The quick brown fox",
    "A fast auburn animal",
    "",
    " ",
    "a",
    "How do I reset my password when the email never arrives? The train was late.",
    "L'été dernier, nous avons visité un château près de la forêt; größer, naß!",
    "Zero\u0000width\u200bjoiners 👩\u200d💻 and cafe\u0301 vs caf\u00e9, "
    "\ufb01ne \uff26\uff35\uff2c\uff2c width",
    "我们今天去图书馆看书。 السلام عليكم",
    "tabs\tand\r\nnewlines\n\n  keep   their    place ",
    "3.14159 + 2 = 5.14159, isn't it? #hash @user http://example.org/a_b?c=d&e=f",
    " ".join(ENGLISH[:12]),
]
