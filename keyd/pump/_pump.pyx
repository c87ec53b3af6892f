# cython: language_level=3, boundscheck=True, wraparound=False, embedsignature=False
"""What of the pump faces Python: bytes in and out, handles, numbers. The rules are in pump.h."""

from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.string cimport memcpy
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from keyd.crypto.native import _core


cdef extern from "../crypto/native/card.h":
    ctypedef uint64_t arena_handle
    ctypedef enum arena_algorithm:
        pass


cdef extern from "seen.h" nogil:
    ctypedef struct seen:
        pass
    seen *seen_new(uint64_t secret)
    void seen_free(seen *s)
    int seen_find(const seen *s, uint64_t card, uint32_t *region, uint32_t *at)
    void seen_put(seen *s, uint64_t card, uint32_t region, uint32_t at, uint32_t window)
    uint64_t seen_forgotten(const seen *s)


cdef extern from "pump.h" nogil:
    int PUMP_KINDS
    ctypedef struct pump:
        pass
    ctypedef struct pump_cards:
        pass
    ctypedef struct pump_place:
        uint16_t roles
        uint8_t kind
        uint8_t generation
        uint16_t address
        uint8_t algorithm
        uint8_t region[3]
    ctypedef struct pump_route:
        arena_handle city
        arena_algorithm algorithm
        uint8_t key_id
        uint32_t key_number
    ctypedef struct pump_asker:
        uint32_t connection
        uint32_t terminal
        uint16_t roles
        uint32_t region
        uint32_t allowance
    ctypedef struct pump_rest:
        int fd
        uint32_t mask
        int is_reset
        const uint8_t *data
        size_t length
        const uint8_t *unsent
        size_t unsent_length
        size_t held
    ctypedef enum pump_verdict:
        PUMP_SEND
        PUMP_HOLD
        PUMP_REFUSE
    int PUMP_USE_BYTES
    pump *pump_new(int epoll_fd, pump_cards cards)
    void pump_free(pump *p)
    void pump_record(pump *p, const uint16_t *methods, size_t card_id_bytes)
    void pump_watch(pump *p, seen *cards, uint32_t window_seconds)
    int pump_admit(pump *p, int fd, pump_asker asker)
    uint32_t pump_dismiss(pump *p, int fd)
    int pump_learn(pump *p, pump_place place, pump_route route)
    void pump_forget(pump *p)
    int pump_poll(pump *p)
    size_t pump_part(pump *p, int hands_up, const uint8_t **uses)
    size_t pump_finish(pump *p, pump_verdict verdict, const pump_rest **rests, int *is_done)
    const uint64_t *pump_counts(const pump *p)
    uint64_t pump_compute_nanoseconds(const pump *p)
    uint64_t pump_served_at(const pump *p, int fd)
    const uint8_t *pump_last_request(const pump *p, size_t *length, int *fd)


cdef class SeenCards:
    """Where each card was seen last, in fixed memory: the pump's and `keyd.policy.watch`'s together."""

    cdef seen *_seen

    def __cinit__(self, bytes secret not None):
        """Take a secret of 8 random bytes: nobody can choose cards that push another out."""
        if len(secret) != 8:
            raise ValueError("the secret has 8 bytes")
        self._seen = seen_new(int.from_bytes(secret, "little"))
        if self._seen == NULL:
            raise MemoryError

    def __dealloc__(self):
        seen_free(self._seen)

    def find(self, bytes card not None):
        """Return the region and the second in which a card (its diversifier, 8 bytes) was seen last, or None."""
        cdef uint32_t region, at
        if seen_find(self._seen, _card_number(card), &region, &at):
            return region, at
        return None

    def put(self, bytes card not None, uint32_t region, uint32_t at, uint32_t window):
        """Note where a card is, at that second. What is older than the window (seconds) may be forgotten for it."""
        seen_put(self._seen, _card_number(card), region, at, window)

    @property
    def forgotten(self):
        """How many cards were forgotten within their window."""
        return seen_forgotten(self._seen)


cdef uint64_t _card_number(bytes card) except? 0:
    cdef uint64_t number
    if len(card) != 8:
        raise ValueError("a diversifier has 8 bytes")
    memcpy(&number, <const char *>card, 8)
    return number


cdef class Pump:
    """Serves the hottest commands on the connections that it was given."""

    cdef pump *_pump
    cdef object _append
    cdef SeenCards _seen
    cdef readonly list held

    def __cinit__(self, int epoll_fd):
        cdef pump_cards *cards = <pump_cards *>PyCapsule_GetPointer(_core.card_functions, "keyd.card_functions")
        self.held = []
        self._pump = pump_new(epoll_fd, cards[0])
        if self._pump == NULL:
            raise MemoryError

    def __dealloc__(self):
        pump_free(self._pump)

    def record(self, append not None, methods not None, size_t card_id_bytes):
        """Record every use before it is answered.

        `append` is given a part's use records and returns the position that its answers must wait for, 0 if they may
        leave at once. Whatever it raises, the part is handed up unanswered. `methods` are the numbers of the kinds.
        """
        cdef uint16_t numbers[3]
        if len(methods) != PUMP_KINDS:
            raise ValueError("each kind has a number")
        for kind, number in enumerate(methods):
            numbers[<int>kind] = number
        pump_record(self._pump, numbers, card_id_bytes)
        self._append = append

    def watch(self, SeenCards seen, uint32_t window_seconds):
        """Leave cards to Python that were seen in another region within so many seconds; None: watch no more."""
        self._seen = seen
        pump_watch(self._pump, seen._seen if seen is not None else NULL, window_seconds)

    def admit(
        self, int fd, uint32_t connection=0, uint32_t terminal=0, uint16_t roles=0, uint32_t region=0,
        uint32_t allowance=0xFFFFFFFF
    ):
        """Serve this connection: Python holds nothing of it that has to go first.

        `connection` and `terminal` are the journal's numbers, `roles` is the number that `learn` is given, `region`
        is where the terminal stands (0: that is not watched), and `allowance` how many answers it may have.
        """
        cdef pump_asker asker
        asker.connection = connection
        asker.terminal = terminal
        asker.roles = roles
        asker.region = region
        asker.allowance = allowance
        if pump_admit(self._pump, fd, asker) != 0:
            raise MemoryError

    def dismiss(self, int fd):
        """Leave this connection to Python. Returns what is left of its allowance."""
        return pump_dismiss(self._pump, fd)

    def learn(
        self, int kind, uint8_t generation, uint16_t address, uint8_t algorithm, bytes region not None, city,
        uint8_t key_id, uint32_t key_number=0, uint16_t roles=0
    ):
        """Take a city key for requests that name exactly this, of terminals whose roles have this number.

        Returns whether there was room beside all others.
        """
        if not 0 <= kind < PUMP_KINDS or generation > 3 or algorithm > 3 or len(region) != 3:
            raise ValueError("no such kind, generation or algorithm, or a region is not 3 bytes")
        cdef const uint8_t[:] digits = region
        cdef pump_place place
        place.roles = roles
        place.kind = <uint8_t>kind
        place.generation = generation
        place.address = address
        place.algorithm = algorithm
        place.region[0] = digits[0]
        place.region[1] = digits[1]
        place.region[2] = digits[2]
        cdef pump_route route
        route.city = <arena_handle>city.number
        route.algorithm = <arena_algorithm><int>city.algorithm
        route.key_id = key_id
        route.key_number = key_number
        return pump_learn(self._pump, place, route) == 0

    def forget(self):
        """Let go of every key."""
        pump_forget(self._pump)

    def tick(self, bint hands_up=False):
        """Take readiness without waiting, and serve what is the pump's.

        Returns what is Python's, as (fd, epoll mask, is_reset, data, unsent): an event to handle, bytes that were
        read, answers that did not leave; and how many requests were answered, by kind. Answers that must wait for
        their records are in `held`, and in no rest. With `hands_up` nothing is answered, and no key touched.
        """
        cdef const pump_rest *rests
        cdef const uint8_t *uses
        cdef size_t count, i
        cdef int is_done = 0, handing = hands_up
        cdef pump_verdict verdict
        cdef list handed = []
        cdef object position
        if self.held:
            self.held = []
        with nogil:
            is_done = pump_poll(self._pump) == 0
        while not is_done:
            verdict = PUMP_SEND
            position = 0
            with nogil:
                count = pump_part(self._pump, handing, &uses)
            if count:
                try:
                    position = self._append(uses[:count * PUMP_USE_BYTES])
                    if position:
                        verdict = PUMP_HOLD
                except Exception:
                    # Who appends has said why. The long way will meet the same, and refuses.
                    verdict = PUMP_REFUSE
                    handing = True
            with nogil:
                count = pump_finish(self._pump, verdict, &rests, &is_done)
            for i in range(count):
                if rests[i].held:
                    self.held.append((
                        rests[i].fd, rests[i].unsent[:rests[i].unsent_length], position, rests[i].held
                    ))
                    if not (rests[i].mask or rests[i].is_reset or rests[i].length):
                        continue
                handed.append((
                    rests[i].fd,
                    rests[i].mask,
                    rests[i].is_reset != 0,
                    rests[i].data[:rests[i].length] if rests[i].length else b"",
                    rests[i].unsent[:rests[i].unsent_length]
                    if rests[i].unsent_length and not rests[i].held else b"",
                ))
        cdef const uint64_t *counts = pump_counts(self._pump)
        return handed, (counts[0], counts[1], counts[2])

    @property
    def compute_seconds(self):
        """How long the last tick computed."""
        return pump_compute_nanoseconds(self._pump) / 1e9

    def served_at(self, int fd):
        """When a descriptor was last served, in seconds of CLOCK_MONOTONIC; 0 if never. See pump.h."""
        return pump_served_at(self._pump, fd) / 1e9

    @property
    def last_request(self):
        """The last request that was answered well: who asked it, and its bytes."""
        cdef size_t length
        cdef int fd
        cdef const uint8_t *request = pump_last_request(self._pump, &length, &fd)
        return fd, <bytes>request[:length]
