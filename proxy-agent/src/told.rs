//! What the source told, as kube-proxy counts it: pure, and gone once it is counted.

use datapath::service::service_flags;

use crate::desired::{DesiredService, DesiredSet, IpFamily};

/// Since this was last taken.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Told {
    pub services: u64,
    pub endpoints: u64,
    pub triggers: Vec<Trigger>,
}

/// A change of a Service's pods that an EndpointSlice carries on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Trigger {
    pub family: IpFamily,
    /// When the pods changed, in milliseconds since 1970.
    pub at_ms: u64,
}

/// Ports of Services with a traffic policy of Local that have endpoints, but none on this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NoLocal {
    pub internal: [u32; 2],
    pub external: [u32; 2],
}

impl NoLocal {
    pub fn add(&mut self, family: IpFamily, row: &DesiredService) {
        for count in self.counts(family, row) {
            *count += 1;
        }
    }

    pub fn remove(&mut self, family: IpFamily, row: &DesiredService) {
        for count in self.counts(family, row) {
            *count -= 1;
        }
    }

    /// Those that a row counts in. Traffic that is dropped has endpoints elsewhere.
    fn counts(&mut self, family: IpFamily, row: &DesiredService) -> impl Iterator<Item = &mut u32> {
        let is_without = row.local == DesiredSet::Drop;
        let index = usize::from(family == IpFamily::V6);
        let both = [
            (service_flags::INTERNAL_LOCAL, &mut self.internal[index]),
            (service_flags::EXTERNAL_LOCAL, &mut self.external[index]),
        ];
        let counted = move |flag: u32| is_without && row.flags & flag != 0;
        both.into_iter().filter(move |(flag, _)| counted(*flag)).map(|(_, count)| count)
    }
}
