"""The Python module: python.py MODEL OTHER FOLDER, with BLT_LIBRARY set."""

import ctypes
import gc
import re
import sys
import threading
import unittest

sys.path.insert(0, "examples/python")
import blt  # noqa: E402

MODEL, OTHER, FOLDER = sys.argv[1:4]


class Python(unittest.TestCase):
    def setUp(self):
        self.model = blt.Model(MODEL, threads=1)
        self.addCleanup(self.model.close)

    def session(self, **options):
        session = blt.Session(self.model, **options)
        self.addCleanup(session.close)
        return session

    def status(self, function, *args, **kwargs):
        with self.assertRaises(blt.Error) as raised:
            function(*args, **kwargs)
        self.assertTrue(str(raised.exception))
        return raised.exception.status

    def test_ways_to_the_same_bytes(self):
        start = self.session(seed=3, ignore_eos=True)
        start.feed(b"The sun")
        text, reason = start.fork().generate(40)
        self.assertEqual((len(text), reason), (40, "max_bytes"))
        one = start.fork()
        self.assertEqual(b"".join(one.stream(40)), text)
        self.assertEqual(len(one), len(start) + 40)
        load = lambda state: blt.Session.load(self.model, state, seed=3, ignore_eos=True)
        self.assertEqual(load(start.save()).generate(40)[0], text)
        start.save(f"{FOLDER}/python")
        self.assertEqual(load(f"{FOLDER}/python").generate(40)[0], text)
        stopping = start.fork()
        stopping.set_sampling(seed=3, ignore_eos=True, stop=[text[10:12], b"\0\0\0"])
        stopped, reason = stopping.generate(40)
        self.assertEqual(reason, "stop")
        self.assertTrue(text.startswith(stopped))

    def test_names_and_numbers_are_those_of_the_header(self):
        with open("src/ffi/blt.h") as file:
            header = file.read()

        def values(prefix):
            found = re.findall(rf"\b{prefix}_([A-Z_]+) = (\d+)", header)
            return {name.lower(): int(number) for name, number in found}

        self.assertEqual({n: number for n, (number, _) in blt._OPTIONS.items()}, values("BLT_OPTION"))
        kinds = r"// [A-Z][a-z ]+, (int|real|text)\b.*\n(?: +//.*\n)* +BLT_OPTION_([A-Z_]+)"
        kinds = {name.lower(): kind for kind, name in re.findall(kinds, header)}
        self.assertEqual({n: kind for n, (_, kind) in blt._OPTIONS.items()}, kinds)
        self.assertEqual({n: number for number, n in blt._FINISH.items()}, values("BLT_FINISH"))
        self.assertEqual(blt.Model._KEYS, values("BLT_MODEL"))
        self.assertEqual(blt.Session._KEYS, values("BLT_SESSION"))

    def test_numbers(self):
        session = self.session()
        self.assertEqual(len(session.logits()), 0)
        bits = session.score(b"hello there")
        self.assertGreater(bits, 0)
        self.assertEqual(len(session.logits()), 260)
        self.assertEqual(len(session.entropies()), 12)
        self.assertEqual(session.entropies(10), session.entropies()[10:])
        self.assertEqual(list(session.patch_starts())[:2], [0, 1])
        session.rewind(6)
        self.assertEqual(session.info("length"), 6)
        for key in blt.Model._KEYS:
            self.model.info(key)

    def test_errors(self):
        self.assertEqual(self.status(blt.Model, "/no/such/model"), "BLT_ERROR_IO")
        self.assertEqual(self.status(self.session().rewind, 5), "BLT_ERROR_ARGUMENT")
        self.assertEqual(
            self.status(blt.Session.load, self.model, b"nonsense"), "BLT_ERROR_FORMAT"
        )
        self.assertEqual(self.status(self.session, top_p=7), "BLT_ERROR_ARGUMENT")
        self.assertRaises(TypeError, self.session, temprature=1)
        self.assertRaises(ValueError, self.session, seed=-1)
        with blt.Model(OTHER) as other:
            state = self.session().save()
            self.assertEqual(self.status(blt.Session.load, other, state), "BLT_ERROR_FORMAT")
        self.assertRaises(ctypes.ArgumentError, len, _closed(self.session()))

    def test_callbacks(self):
        calls = []
        with blt.Model(MODEL, preload=True, progress=lambda *n: calls.append(n)):
            pass
        self.assertEqual(calls[0][0], 0)
        self.assertEqual(*calls[-1])
        refuse = lambda done, total: False
        self.assertEqual(self.status(blt.Model, MODEL, progress=refuse), "BLT_ERROR_CANCELLED")
        session = self.session()
        session.feed(b"abc")
        _, reason = session.generate(10, lambda piece: False)
        self.assertEqual((reason, len(session)), ("callback", 5))
        with self.assertRaises(ZeroDivisionError):
            session.generate(10, lambda piece: 1 / 0)

    def test_the_interpreter_runs_while_the_engine_works(self):
        session = self.session(max_bytes=1 << 20, max_patches=1 << 20)
        working = threading.Thread(target=lambda: self.assertEqual(
            self.status(session.feed, b"x" * 1_000_000), "BLT_ERROR_CANCELLED"))
        working.start()
        # Were the lock held, this would return when all is read. A call that has not begun yet is not
        # ended by `cancel`, so it is repeated.
        working.join(0.05)
        self.assertTrue(working.is_alive())
        for _ in range(400):
            session.cancel()
            working.join(0.05)
            if not working.is_alive():
                break
        self.assertFalse(working.is_alive())
        self.assertEqual(len(session), 0)

    def test_two_threads_on_one_model(self):
        texts = [None] * 2

        def run(i):
            with blt.Session(self.model, seed=1) as session:
                session.feed(b"One day")
                texts[i] = session.generate(60)[0]

        threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertIsNotNone(texts[0])
        self.assertEqual(*texts)

    def test_a_model_may_go_before_its_session(self):
        model = blt.Model(MODEL)
        session = blt.Session(model)
        del model
        gc.collect()
        session.feed(b"still here")
        session.close()
        session.close()


def _closed(session):
    session.close()
    return session


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
