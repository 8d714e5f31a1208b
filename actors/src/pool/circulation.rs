//! Used sandboxes that come back to their tenants: those that are lent, and those that are being reset.

use std::collections::BTreeMap;
use std::time::Duration;

use isol8_api::TenantId;
use tokio::time::Instant;

/// Shortest time for which a request waits for a sandbox of its tenant that is in use.
const LEAST_PATIENCE: Duration = Duration::from_millis(20);

/// The sandboxes of one sub-pool that come back, by tenant.
#[derive(Debug, Default)]
pub(super) struct Circulation {
    tenants: BTreeMap<TenantId, Circulating>,
    /// Average duration of a reset; zero while none is known.
    reset: Duration,
}

/// The sandboxes of one tenant that come back.
#[derive(Debug, Default)]
struct Circulating {
    /// Number of those in use.
    lent: usize,
    /// Start of each reset under way, in order.
    resets: Vec<Instant>,
    /// End of the last reset.
    returned: Option<Instant>,
}

impl Circulation {
    /// A sandbox was handed out that its tenant may use again.
    pub(super) fn lend(&mut self, tenant: &TenantId) {
        self.tenants.entry(tenant.clone()).or_default().lent += 1;
    }

    /// A lent sandbox has come back, or has another owner.
    pub(super) fn give_back(&mut self, tenant: &TenantId) {
        if let Some(own) = self.tenants.get_mut(tenant) {
            own.lent = own.lent.saturating_sub(1);
        }
        self.forget_idle(tenant);
    }

    /// A reset begins now.
    pub(super) fn begin_reset(&mut self, tenant: &TenantId) {
        let own = self.tenants.entry(tenant.clone()).or_default();
        own.resets.push(Instant::now());
    }

    /// Notes the end of a reset; `took` is its duration if it succeeded.
    pub(super) fn end_reset(&mut self, tenant: &TenantId, took: Option<Duration>) {
        self.reset = match took {
            Some(took) if self.reset.is_zero() => took,
            Some(took) => (self.reset * 7 + took) / 8,
            None => self.reset,
        };
        if let Some(own) = self.tenants.get_mut(tenant) {
            own.resets.drain(..own.resets.len().min(1));
            own.returned = Some(Instant::now());
        }
        self.forget_idle(tenant);
    }

    /// Number of resets under way.
    pub(super) fn resets(&self) -> usize {
        self.tenants.values().map(|own| own.resets.len()).sum()
    }

    /// Number of resets under way of a tenant's sandboxes.
    pub(super) fn resets_of(&self, tenant: &TenantId) -> usize {
        self.tenants.get(tenant).map_or(0, |own| own.resets.len())
    }

    /// Number of a tenant's sandboxes that are in use or being reset.
    pub(super) fn count(&self, tenant: &TenantId) -> usize {
        let own = self.tenants.get(tenant);
        own.map_or(0, |own| own.lent + own.resets.len())
    }

    /// Whether a reset serves a tenant's request sooner than a new sandbox, which takes `making`, with
    /// `ahead` requests of the same tenant before it. A reset that takes twice as long as usual is not counted
    /// on.
    pub(super) fn is_sooner(&self, tenant: &TenantId, ahead: usize, making: Duration) -> bool {
        let Some(own) = self.tenants.get(tenant) else {
            return false;
        };
        let usual = |begun: &&Instant| begun.elapsed() < self.reset * 2;
        self.reset < making && own.resets.iter().filter(usual).count() > ahead
    }

    /// Whether a tenant's sandboxes go round: one came back within twice the time `making` that a new sandbox
    /// takes.
    pub(super) fn goes_round(&self, tenant: &TenantId, making: Duration) -> bool {
        let own = self.tenants.get(tenant);
        own.and_then(|own| own.returned)
            .is_some_and(|returned| returned.elapsed() < LEAST_PATIENCE.max(making * 2))
    }

    fn forget_idle(&mut self, tenant: &TenantId) {
        if let Some(own) = self.tenants.get(tenant)
            && own.lent + own.resets.len() == 0
        {
            self.tenants.remove(tenant);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAKING: Duration = Duration::from_millis(100);

    fn after(milliseconds: u64) -> impl Future<Output = ()> {
        tokio::time::sleep(Duration::from_millis(milliseconds))
    }

    #[tokio::test(start_paused = true)]
    async fn a_reset_is_counted_on_once_its_duration_is_known_and_while_it_is_usual() {
        let (mut circulation, tenant) = (Circulation::default(), TenantId::master());
        circulation.begin_reset(&tenant);
        assert!(!circulation.is_sooner(&tenant, 0, MAKING), "not known");
        circulation.end_reset(&tenant, Some(MAKING / 10));
        assert!(!circulation.is_sooner(&tenant, 0, MAKING), "none under way");
        circulation.begin_reset(&tenant);
        assert!(circulation.is_sooner(&tenant, 0, MAKING));
        assert!(!circulation.is_sooner(&tenant, 1, MAKING), "of the other");
        assert!(!circulation.is_sooner(&tenant, 0, MAKING / 20), "slower");
        after(21).await;
        assert!(!circulation.is_sooner(&tenant, 0, MAKING), "it hangs");
    }

    #[tokio::test(start_paused = true)]
    async fn sandboxes_go_round_while_they_come_back() {
        let (mut circulation, tenant) = (Circulation::default(), TenantId::master());
        assert!(!circulation.goes_round(&tenant, MAKING));
        circulation.lend(&tenant);
        circulation.lend(&tenant);
        assert!(!circulation.goes_round(&tenant, MAKING), "none came yet");
        circulation.give_back(&tenant);
        circulation.begin_reset(&tenant);
        circulation.end_reset(&tenant, Some(MAKING));
        assert!(circulation.goes_round(&tenant, MAKING));
        after(201).await;
        assert!(!circulation.goes_round(&tenant, MAKING), "too long ago");
        circulation.give_back(&tenant);
        assert!(!circulation.goes_round(&tenant, MAKING), "none left");
        assert_eq!(circulation.tenants.len(), 0);
    }
}
