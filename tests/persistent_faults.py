"""The faults of test_persistent_faults.py: each changes the text of one kernel source."""

from dataclasses import dataclass
from pathlib import Path

FLAG, DATA = "persistent_flags", "persistent"


@dataclass(frozen=True)
class Fault:
    """``old`` is replaced by ``new``; where it occurs several times, once."""

    file: str
    old: str
    new: str
    occurrence: int = 0
    strategy: str = FLAG
    also: "Fault | None" = None  # where each of two guards hides that the other one is missing

    def plant(self, csrc: Path) -> None:
        if self.also:
            self.also.plant(csrc)
        path = csrc / "cuda" / self.file
        parts = path.read_text().split(self.old)
        assert len(parts) > self.occurrence + 1, f"{self.file} has no {self.old!r} any more"
        before, after = parts[: self.occurrence + 1], parts[self.occurrence + 1 :]
        path.write_text(self.old.join(before) + self.new + self.old.join(after))


EXCHANGE, PRODUCTS, CELLS, SETUP = "exchange.cuh", "products.cuh", "lane_cells.cuh", "persistent_setup.cu"
FORWARD, BACKWARD = "persistent_forward.cuh", "persistent_backward.cuh"
BARRIER = "block_barrier();\n"
AHEAD = "ends ? 0 : chunk.first_tile + plan.row_tiles_per_chunk"

# test_protocol.py shows a missing fence without flags: on the emulator a store that is late for one block is late for
# all.
EXCHANGED = {
    "one_slot": Fault(EXCHANGE, "(state_index & (Traits::kSlots - 1))", "(state_index & 0)"),
    "no_release": Fault(EXCHANGE, "store_release(flags_", "store_relaxed(flags_"),
    "waits_for_one_block": Fault(EXCHANGE, "member <= last", "member <= first"),
    "reads_before_it_is_published": Fault(EXCHANGE, "load_relaxed(flag) < count", "load_relaxed(flag) + 1 < count"),
    "lanes_do_not_wait_for_their_warp": Fault(EXCHANGE, "      warp_barrier();\n", ""),
    "slot_without_row_tile": Fault(EXCHANGE, "slot_words_ + row_tile * kRowTileWords", "slot_words_"),
    "word_without_row_tile": Fault(EXCHANGE, "return row_tile * kRowTileWords + (access", "return (access"),
    "word_of_another_row": Fault(EXCHANGE, "row * 4 + access % 4", "(row ^ 1) * 4 + access % 4"),
    "word_of_another_k_block": Fault(EXCHANGE, "access / 4 * kLanes", "access / 8 * kLanes"),
    "backward_words_of_neighbours": Fault(EXCHANGE, "i * 2 * kAccessWords :", "i * kAccessWords :"),
    "one_unit_twice": Fault(
        EXCHANGE, "pack<IO>(values[0], shuffle_xor(values[0], 1))", "pack<IO>(values[0], values[0])"
    ),
    "odd_lane_sends_its_own_gate": Fault(EXCHANGE, "odd ? first : second, 1", "odd ? second : first, 1"),
    "odd_lane_packs_the_other_gate": Fault(EXCHANGE, "odd ? second : other", "odd ? first : other"),
    "odd_lane_publishes_the_even_ones_word": Fault(
        EXCHANGE, "(kPacked ? unit % 2 * kUnitOctet : 0)", "(kPacked ? unit % 2 * 0 : 0)"
    ),
    "data_odd_lane_publishes_the_even_ones_word": Fault(
        EXCHANGE, "(kPacked ? unit % 2 * kUnitOctet : 0)", "(kPacked ? unit % 2 * 0 : 0)", strategy=DATA
    ),
    "data_one_word": Fault(
        EXCHANGE, " || words.y == kEmpty || words.z == kEmpty || words.w == kEmpty", "", strategy=DATA
    ),
    "data_two_slots": Fault(EXCHANGE, "kSlots = slot_count(kSignal)", "kSlots = 2", strategy=DATA),
    "data_words_of_rows_that_do_not_exist_are_polled": Fault(
        SETUP, "has_term && has_row ?", "has_term && (has_row || true) ?", strategy=DATA
    ),
    "data_words_of_terms_that_do_not_exist_are_polled": Fault(
        SETUP, "word < published_words", "word < published_words + 1", strategy=DATA
    ),
}

MULTIPLIED = {
    "partial_sums_of_another_row_are_put": Fault(
        PRODUCTS, "to[0] = sum[0], to[kOddRow] = sum[1]", "to[0] = sum[1], to[kOddRow] = sum[0]"
    ),
    "total_of_one_row_of_two": Fault(PRODUCTS, "row % 2 * kOddRow", "0 * kOddRow"),
    "total_of_the_first_rows": Fault(PRODUCTS, "row / 2 * kUnitOctet", "row / 4 * kUnitOctet"),
    "total_without_a_warp": Fault(PRODUCTS, "(of(6) + of(7))", "of(6)"),
    "words_of_another_row_tile": Fault(PRODUCTS, "return words[i + further][k]", "return words[i][k]"),
    "loads_one_row_tile": Fault(PRODUCTS, "(state_index, row_tile + i, words_", "(state_index, row_tile, words_"),
    "data_no_poll": Fault(
        PRODUCTS,
        "ring_.template poll<kStage * kCount, kCount, kAtOnce>(state_index, first_tile + tile + i, k_block);",
        ";",
        strategy=DATA,
    ),
    "data_polls_another_row_tile": Fault(
        EXCHANGE, "first + tile * (kRowTileWords", "first + 0 * tile * (kRowTileWords", strategy=DATA
    ),
    "data_polls_a_chunk_too_far": Fault(
        PRODUCTS, "first_tile + tile + i, k_block", "first_tile + tile + i + row_tiles_, k_block", strategy=DATA
    ),
}

PLACED = {
    "chunk_without_warp": Fault(
        CELLS, "first_tile * kRowTile + warp_index()}", "first_tile * kRowTile + warp_index() / 2}"
    ),
    "sequence_row_of_the_first_row": Fault(
        CELLS, "(entry + slice_.first_row + chunk.row) *", "(entry + slice_.first_row + chunk.first_tile) *"
    ),
    "sequence_row_without_directions": Fault(
        CELLS, "chunk.row) * static_cast<int>(size_.directions)", "chunk.row) * 1"
    ),
    "sequence_row_of_another_step": Fault(CELLS, "slice_.d ? T - 1 - step : step", "slice_.d ? step : T - 1 - step"),
    "further_row_without_directions": Fault(CELLS, "cell.row * static_cast<int>(size_.directions) *", "cell.row *"),
    "further_row_of_the_first_tile": Fault(CELLS, "return cell.row *", "return 0 * cell.row *"),
    "state_row_of_the_first_tile": Fault(
        CELLS, "chunk.row + cell_[quad].row) * size_.hidden", "chunk.row) * size_.hidden"
    ),
    "word_of_another_warps_row": Fault(
        CELLS, "(cell.row / kRowTile, warp_index(),", "(cell.row / kRowTile, warp_index() ^ 1,"
    ),
    "data_word_of_another_warps_row": Fault(
        CELLS, "(cell.row / kRowTile, warp_index(),", "(cell.row / kRowTile, warp_index() ^ 1,", strategy=DATA
    ),
    "word_of_the_first_quad": Fault(
        CELLS, "chunk.first_tile) + word_[quad], publishes", "chunk.first_tile) + word_[0], publishes"
    ),
    "publishes_the_first_chunk": Fault(
        CELLS,
        "ring.words(state_index, chunk.first_tile) + word_[quad], publishes",
        "ring.words(state_index, 0) + word_[quad], publishes",
    ),
    "data_clears_the_first_chunk": Fault(
        CELLS,
        "ring.clear(ring.words(state_index, chunk.first_tile)",
        "ring.clear(ring.words(state_index, 0)",
        strategy=DATA,
    ),
    "data_clears_the_first_quad": Fault(
        CELLS,
        "ring.clear(ring.words(state_index, chunk.first_tile) + word_[quad])",
        "ring.clear(ring.words(state_index, chunk.first_tile) + word_[0])",
        strategy=DATA,
    ),
    "cell_state_of_another_quad": Fault(
        CELLS, "(chunk.index * plan_.quads + quad) * kThreads", "chunk.index * plan_.quads * kThreads"
    ),
    "cell_state_of_another_chunk": Fault(CELLS, "(chunk.index * plan_.quads + quad) * kThreads", "quad * kThreads"),
    "octet_of_another_row_tile": Fault(CELLS, "row_tile = tile / octets", "row_tile = tile / (octets + 1)"),
    "waits_for_too_few_octets": Fault(
        CELLS, "last_octet < octets ? last_octet : octets - 1", "last_octet < octets ? first : octets - 1"
    ),
}

FORWARDS = {
    "forward_no_barrier_after_the_products": Fault(FORWARD, BARRIER, "", 1),
    "forward_no_barrier_before_the_flag": Fault(FORWARD, BARRIER, "", 2),
    "forward_no_barrier_before_the_first_flag": Fault(FORWARD, BARRIER, "", 0),
    "forward_first_state_not_published": Fault(FORWARD, "publish(0, chunk", "if (i > 0) publish(0, chunk"),
    "forward_last_chunk_alone": Fault(FORWARD, "count + static_cast<uint32_t>(chunks)", "count + 1"),
    "forward_gates_not_exchanged_two_apart": Fault(FORWARD, "apart < kQuadTiles; apart *= 2", "apart < 2; apart *= 2"),
    "forward_gates_not_exchanged_by_neighbours": Fault(FORWARD, "int apart = 1; apart", "int apart = 2; apart"),
    "forward_gates_of_other_lanes": Fault(FORWARD, "apart * kUnitOctet)", "apart * kUnitOctet / 2)"),
    "forward_total_of_another_warps_row": Fault(
        FORWARD, "total(tile * 4 + gate, warp_index())", "total(tile * 4 + gate, warp_index() ^ 1)"
    ),
    "forward_total_of_another_quad": Fault(FORWARD, "int tile = quad * kQuadTiles + j;", "int tile = j;"),
    "forward_input_of_another_quad": Fault(
        FORWARD, "gate_inputs_[(quad * kQuadTiles + j)", "gate_inputs_[(0 * quad + j)"
    ),
    "forward_active_by_another_tile": Fault(FORWARD, "cell.at.active), j * kUnitOctet)", "cell.at.active), 0)"),
    "forward_input_of_one_row_tile": Fault(FORWARD, "4 * cells_.further_row(cell) + gate", "gate"),
    "forward_first_h_by_step": Fault(FORWARD, "if (at.active && at.first)", "if (at.active && step == 0)"),
    "forward_first_c_is_overwritten": Fault(FORWARD, "cell.gates = {};\n      return;", "cell.gates = {};"),
    "forward_c_ignores_enters": Fault(FORWARD, "cell.at.enters ? 0.0f : c_t", "c_t"),
    "forward_h_ignores_enters": Fault(FORWARD, "at.active && !at.enters ? h", "at.active ? h"),
    "forward_publishes_by_this_step": Fault(
        FORWARD, "cells[quad].next, cells[quad].h", "cells[quad].at, cells[quad].h"
    ),
    "forward_data_clears_too_early": Fault(FORWARD, "clear(ring, step - 1,", "clear(ring, step,", strategy=DATA),
    "forward_data_never_clears": Fault(
        FORWARD, "if (step > 0) lane_cells.clear", "if (step < 0) lane_cells.clear", strategy=DATA
    ),
    "forward_data_no_barrier_after_the_products": Fault(FORWARD, BARRIER, "", 1, DATA),
    "forward_data_one_buffer": Fault(FORWARD, "buffer ^= 1;", "", strategy=DATA),
    "forward_data_reads_the_other_buffer": Fault(
        FORWARD,
        "forward.update(partials,",
        "forward.update(Partials(partial_sums + (buffer ^ 1) * Layout::partials(plan)),",
        strategy=DATA,
    ),
    "forward_data_loads_the_same_chunk_ahead": Fault(FORWARD, AHEAD, "ends ? 0 : chunk.first_tile", strategy=DATA),
    "forward_data_loads_the_next_chunk_at_the_end": Fault(
        FORWARD, AHEAD, "chunk.first_tile + plan.row_tiles_per_chunk", strategy=DATA
    ),
    "forward_data_loads_the_same_step_ahead": Fault(
        FORWARD, "state.load(step + ends,", "state.load(step,", strategy=DATA
    ),
    "forward_data_first_load_left_out": Fault(FORWARD, "if (loads_ahead) state.load(0, 0);\n", "", strategy=DATA),
}

BACKWARDS = {
    "backward_no_barrier_after_the_products": Fault(BACKWARD, "if (done > 0) " + BARRIER, ""),
    "backward_no_barrier_before_the_flag": Fault(BACKWARD, "        " + BARRIER, ""),
    "backward_old_gradients": Fault(BACKWARD, "state.load(done - 1,", "state.load(done,"),
    "backward_total_of_another_warps_row": Fault(
        BACKWARD, "partials.total(tile, warp_index())", "partials.total(tile, warp_index() ^ 1)"
    ),
    "backward_total_of_another_quad": Fault(
        BACKWARD, "quad * kQuadTiles + lane_index() / kUnitOctet", "lane_index() / kUnitOctet"
    ),
    "backward_first_c_by_step": Fault(
        BACKWARD, "if (cell.at.first && !cell.at.enters) c_before", "if (step == 0 && !cell.at.enters) c_before"
    ),
    "backward_c_ignores_enters": Fault(
        BACKWARD, "if (!cell.at.first && !cell.at.enters) c_before", "if (!cell.at.first) c_before"
    ),
    "backward_grad_c_ignores_enters": Fault(
        BACKWARD, "grad_c_t = cell.at.enters ? 0.0f : grad.c_prev", "grad_c_t = grad.c_prev"
    ),
    "backward_h_ignores_enters": Fault(
        BACKWARD,
        "const bool enters = cell.at.enters;",
        "const bool enters = false;",
        also=Fault(BACKWARD, "if (cell.at.continues) cell.grad_h_t", "cell.grad_h_t"),
    ),
    "backward_bias_of_one_quad": Fault(
        BACKWARD, "tile < cells_.tiles(); tile += octets", "tile < kQuadTiles; tile += octets"
    ),
    "backward_bias_added_to_the_first_quad": Fault(
        BACKWARD, "add(bias[quad], cells[quad].gates)", "add(bias[0], cells[quad].gates)"
    ),
    "backward_bias_of_seven_warps": Fault(
        BACKWARD, "int warp = 0; warp < kPersistentWarps", "int warp = 1; warp < kPersistentWarps"
    ),
    "backward_bias_no_barrier": Fault(BACKWARD, "    " + BARRIER + "    const int octets", "    const int octets"),
    "backward_data_bias_over_partial_sums": Fault(
        BACKWARD, BARRIER + "  backward.sum_bias", "backward.sum_bias", strategy=DATA
    ),
    "backward_data_clears_too_early": Fault(BACKWARD, "clear(ring, done - 2,", "clear(ring, done - 1,", strategy=DATA),
    "backward_data_never_clears": Fault(
        BACKWARD, "if (done > 1) lane_cells.clear", "if (done < 0) lane_cells.clear", strategy=DATA
    ),
    "backward_data_no_barrier_after_the_products": Fault(BACKWARD, "if (done > 0) " + BARRIER, "", strategy=DATA),
    "backward_data_one_buffer": Fault(BACKWARD, "buffer ^= 1;", "", strategy=DATA),
    "backward_data_reads_the_other_buffer": Fault(
        BACKWARD,
        "backward.update(partials,",
        "backward.update(Partials(partial_sums + (buffer ^ 1) * Layout::partials(plan)),",
        strategy=DATA,
    ),
    "backward_data_loads_the_same_chunk_ahead": Fault(BACKWARD, AHEAD, "ends ? 0 : chunk.first_tile", strategy=DATA),
    "backward_data_loads_the_next_chunk_at_the_end": Fault(
        BACKWARD, AHEAD, "chunk.first_tile + plan.row_tiles_per_chunk", strategy=DATA
    ),
    "backward_data_loads_the_same_step_ahead": Fault(
        BACKWARD, "state.load(done + ends - 1,", "state.load(done - 1 + (done == 0),", strategy=DATA
    ),
    "backward_data_first_load_left_out": Fault(
        BACKWARD, "loads_ahead && done + ends > 0", "loads_ahead && done > 0", strategy=DATA
    ),
}

FAULTS = EXCHANGED | MULTIPLIED | PLACED | FORWARDS | BACKWARDS
