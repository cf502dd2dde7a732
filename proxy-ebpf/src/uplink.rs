//! Entry point of uplinks for what enters the node: out of the tunnel past its device, and what
//! answers masqueraded flows.

use aya_ebpf::{macros::classifier, programs::TcContext};

use crate::{
    frame::is_tagged,
    intercepted,
    masq::masqueraded,
    policies::masquerades,
    skb::{ETH_P_IP, NEXT, is_for_this_node, protocol},
};

#[classifier]
pub fn decap_ingress(context: TcContext) -> i32 {
    if !is_for_this_node(&context) {
        return NEXT;
    }
    if protocol(&context) == ETH_P_IP && !is_tagged(&context) {
        let action = intercepted(&context);
        if action != NEXT {
            return action;
        }
    }
    if masquerades() { masqueraded(&context) } else { NEXT }
}
