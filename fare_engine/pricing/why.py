"""Why the other rules did not act: for a priced leg, every rule of its version that gave no line, with the condition that
failed.

What can never fit such a leg (another network, another rider category) is read from the rules; what was looked at and did
not act, the fold has noted where it was asked to explain."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from fare_engine.pricing.fold import Folded
from fare_engine.pricing.lines import Leg
from fare_engine.tariff.compile import CompiledTariff
from fare_engine.tariff.conditions import static_failing
from fare_engine.tariff.model import Conditions, JoiningRule, Name

TABLES = ("surcharges", "joining_rules", "discounts", "caps", "best_of", "rewards", "rebates")

REASONS: dict[str, tuple[str, str]] = {
    "networks": ("không áp dụng cho mạng này", "is not for this network"),
    "routes": ("không áp dụng cho tuyến này", "is not for this route"),
    "operators": ("không áp dụng cho đơn vị này", "is not for this operator"),
    "rider_categories": ("không áp dụng cho nhóm hành khách này", "is not for this rider category"),
    "media": ("không áp dụng cho loại thẻ này", "is not for this medium"),
    "from_areas": ("không áp dụng khi đi từ đây", "is not for rides from here"),
    "to_areas": ("không áp dụng khi đến đây", "is not for rides to here"),
    "either_areas": ("không có đầu nào nằm trong khu vực", "neither end lies in its areas"),
    "within_areas": ("chuyến đi ra ngoài khu vực", "the ride leaves its areas"),
    "except_areas": ("một đầu nằm trong khu vực loại trừ", "one end lies in an excepted area"),
    "timeframes": ("chạm vào ngoài khung giờ", "the first tap is outside its hours"),
    "exit_timeframes": ("chạm ra ngoài khung giờ", "the last tap is outside its hours"),
    "service_ids": ("không áp dụng cho loại ngày này", "is not for this kind of day"),
    "except_service_ids": ("không áp dụng cho loại ngày này", "is not for this kind of day"),
    "weekdays": ("không áp dụng cho thứ này", "is not for this day of the week"),
    "valid_from": ("chưa bắt đầu", "has not begun"),
    "valid_to": ("đã kết thúc", "has ended"),
    "quota_per_day": ("đã dùng hết số lượt trong ngày", "has been used up for the day"),
    "not reached": ("chưa đạt mức", "is not reached yet"),
    "not cheaper": ("không rẻ hơn", "would not be cheaper"),
    "max_transfers": ("đã đủ số lần chuyển tuyến", "has no transfer left"),
    "skips": ("có chuyến khác ở giữa", "another ride lies between"),
    "span_minutes": ("quá lâu kể từ chuyến đầu", "it is too long after the first ride"),
    "window_minutes": ("quá thời gian chuyển tuyến", "the time to change has passed"),
    "from_networks": ("chuyến trước không thuộc mạng cần có", "the ride before was on another network"),
    "to_networks": ("không chuyển sang mạng này", "is not for a change to this network"),
    "from_leg_groups": ("chuyến trước thuộc nhóm giá khác", "the ride before was of another leg group"),
    "to_leg_groups": ("không chuyển sang nhóm giá này", "is not for a change to this leg group"),
    "from_routes": ("chuyến trước đi tuyến khác", "the ride before was on another route"),
    "to_routes": ("không chuyển sang tuyến này", "is not for a change to this route"),
    "stop_pairs": ("không phải cặp trạm chuyển tuyến", "these are not stops to change between"),
    "window_from": ("không có lần chạm để tính giờ", "there is no tap to reckon the time from"),
    "no earlier leg": ("không có chuyến trước để nối", "there is no earlier ride to join"),
    "given": ("không còn gì để giảm", "nothing was left for it to take off"),
    "same": ("hai chuyến phải giống nhau", "the two rides are not alike"),
    "differs": ("hai chuyến phải khác nhau", "the two rides do not differ"),
    "missing tap": ("thiếu một lần chạm", "a tap is missing"),
    "unpriced": ("giá chuyến đi chưa rõ", "the ride has no price yet"),
}
"""What each reason says to a reader, in Vietnamese and English, after the rule's name."""


class Other(msgspec.Struct, frozen=True):
    """A rule that gave no line for a leg, and why."""

    table: str
    rule_id: str
    name: Name
    reason: str
    vi: str
    en: str


def others(tariff: CompiledTariff, folded: Folded, leg: Leg) -> Iterator[Other]:
    """The rules of the leg's version that gave it no line, in the order of their tables. `folded` must have been explained."""
    version = tariff.versions.get(leg.version_id)
    if version is None or leg.network_id is None:
        return
    acted = {line.rule_id.partition("/")[0] for line in folded.lines if line.leg_id == leg.leg_id}
    acted |= {rule_id for rule_id, _ in leg.follows}
    noted = {passed.rule_id: passed.reason for passed in folded.passed if passed.leg_id == leg.leg_id}
    for table in TABLES:
        for row in getattr(version.version.file, table):
            if row.rule_id not in acted:
                reason = _reason(row, leg, noted)
                vi, en = REASONS[reason.partition(" ")[0] if reason.startswith(("same ", "differs ")) else reason]
                yield Other(table, row.rule_id, row.name, reason, vi, en)


def _reason(row: Conditions, leg: Leg, noted: dict[str, str]) -> str:
    assert leg.network_id is not None
    rule_id = row.rule_id  # type: ignore[attr-defined]  # every table here has one
    never = static_failing(row, leg.network_id, leg.route_id, leg.media, leg.rider_category)
    if never is not None:
        return never
    if rule_id in noted:
        return noted[rule_id]
    if leg.status == "unknown":
        return "unpriced"
    if isinstance(row, JoiningRule):
        return "no earlier leg" if leg.status == "complete" else "missing tap"
    return "given"
