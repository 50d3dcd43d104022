"""A table of rules into the kernel and out of it, each in one transaction: whole or not at all."""

from typing import Any

from pyroute2.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST
from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_NFTABLES, nfgen_msg
from pyroute2.netlink.nfnetlink.nftsocket import (
    NFT_MSG_DELTABLE,
    NFT_MSG_NEWCHAIN,
    NFT_MSG_NEWRULE,
    NFT_MSG_NEWSET,
    NFT_MSG_NEWTABLE,
    nft_chain_msg,
    nft_rule_msg,
    nft_set_msg,
    nft_table_msg,
)
from pyroute2.nftables.main import NFTables

from . import rules

_INET = 1  # the family of IPv4 and IPv6 together
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_APPEND = 0x800

Attributes = list[tuple[str, Any]]


def tables(nft: NFTables) -> dict[str, set[str]]:
    """The chains of every executor's table, by the table's name."""
    found: dict[str, set[str]] = {}
    for message in nft.get_tables():
        name = message.get_attr("NFTA_TABLE_NAME")
        if name and name.startswith(rules.TABLE_PREFIX):
            found[name] = set()
    for message in nft.get_chains():
        name = message.get_attr("NFTA_CHAIN_TABLE")
        if name in found:
            found[name].add(message.get_attr("NFTA_CHAIN_NAME"))
    return found


def create(nft: NFTables, table: rules.Table) -> None:
    """Raises NetlinkError; then nothing has changed."""
    create_only = NLM_F_CREATE | NLM_F_EXCL
    messages = [
        _message(nft_table_msg, NFT_MSG_NEWTABLE, create_only, [("NFTA_TABLE_NAME", table.name)])
    ]
    for number, (name, flag) in enumerate(
        ((rules.CONNECTIONS_SET, "NFT_SET_EVAL"), (rules.RATES_SET, "NFT_SET_TIMEOUT")), 1
    ):
        attributes: Attributes = [
            ("NFTA_SET_TABLE", table.name),
            ("NFTA_SET_NAME", name),
            ("NFTA_SET_FLAGS", {"NFT_SET_EVAL", flag}),
            ("NFTA_SET_KEY_TYPE", rules.ADDRESS_TYPE),
            ("NFTA_SET_KEY_LEN", rules.ADDRESS_BYTES),
            ("NFTA_SET_ID", number),
            ("NFTA_SET_DESC", {"attrs": [("NFTA_SET_DESC_SIZE", rules.SANDBOXES_MAX)]}),
        ]
        if flag == "NFT_SET_TIMEOUT":
            attributes.append(("NFTA_SET_TIMEOUT", rules.RATE_TIMEOUT_MS))
        messages.append(_message(nft_set_msg, NFT_MSG_NEWSET, NLM_F_CREATE, attributes))
    messages += [_chain(table.name, chain) for chain in table.chains]
    for chain in table.chains:
        for rule in chain.rules:
            attributes = [
                ("NFTA_RULE_TABLE", table.name),
                ("NFTA_RULE_CHAIN", chain.name),
                ("NFTA_RULE_EXPRESSIONS", rule),
            ]
            flags = NLM_F_CREATE | _APPEND
            messages.append(_message(nft_rule_msg, NFT_MSG_NEWRULE, flags, attributes))
    _commit(nft, messages)


def delete(nft: NFTables, name: str) -> None:
    """Raises NetlinkError."""
    _commit(nft, [_message(nft_table_msg, NFT_MSG_DELTABLE, 0, [("NFTA_TABLE_NAME", name)])])


def _chain(table: str, chain: rules.Chain) -> nfgen_msg:
    attributes: Attributes = [("NFTA_CHAIN_TABLE", table), ("NFTA_CHAIN_NAME", chain.name)]
    if chain.hook is not None:
        hook = [("NFTA_HOOK_HOOKNUM", chain.hook), ("NFTA_HOOK_PRIORITY", chain.priority)]
        attributes.append(("NFTA_CHAIN_HOOK", {"attrs": hook}))
        attributes.append(("NFTA_CHAIN_TYPE", chain.kind))
    return _message(nft_chain_msg, NFT_MSG_NEWCHAIN, NLM_F_CREATE, attributes)


def _message(kind: type[nfgen_msg], number: int, flags: int, attributes: Attributes) -> nfgen_msg:
    message = kind()
    message["attrs"] = attributes
    message["header"]["type"] = NFNL_SUBSYS_NFTABLES << 8 | number
    message["header"]["flags"] = NLM_F_REQUEST | NLM_F_ACK | flags
    message["nfgen_family"] = _INET
    return message


def _bound(number: int) -> nfgen_msg:
    message = nfgen_msg()
    message["res_id"] = NFNL_SUBSYS_NFTABLES
    message["header"]["type"] = number
    message["header"]["flags"] = NLM_F_REQUEST
    return message


def _commit(nft: NFTables, messages: list[nfgen_msg]) -> None:
    nft.nlm_request_batch([_bound(_BATCH_BEGIN), *messages, _bound(_BATCH_END)])
