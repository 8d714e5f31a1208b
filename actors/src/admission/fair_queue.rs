//! Waiting jobs: one queue for each tenant, and the order in which tenants take turns.

use std::collections::{HashMap, VecDeque};

use isol8_api::TenantId;
use tokio::sync::oneshot::Sender;

use super::Permit;

/// A place in a line. Later ones are larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(u64);

/// All lines.
#[derive(Debug, Default)]
pub(super) struct FairQueue {
    /// The queues of tenants that have jobs.
    tenants: HashMap<TenantId, TenantQueue>,
    /// Tenants that wait; the first has its turn next.
    order: VecDeque<TenantId>,
    next_ticket: u64,
    len: usize,
}

#[derive(Debug, Default)]
struct TenantQueue {
    running: usize,
    waiting: VecDeque<(Ticket, Sender<Permit>)>,
}

impl FairQueue {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// How many of one tenant wait.
    pub(super) fn of(&self, tenant: &TenantId) -> usize {
        self.tenants
            .get(tenant)
            .map_or(0, |line| line.waiting.len())
    }

    pub(super) fn push(&mut self, tenant: &TenantId, reply: Sender<Permit>) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        let line = self.tenants.entry(tenant.clone()).or_default();
        if line.waiting.is_empty() {
            self.order.push_back(tenant.clone());
        }
        line.waiting.push_back((ticket, reply));
        self.len += 1;
        ticket
    }

    /// Takes out whose turn it is, and counts it as running. Tenants of which `most` run already are
    /// passed over.
    pub(super) fn next(&mut self, most: usize) -> Option<(TenantId, Sender<Permit>)> {
        for _ in 0..self.order.len() {
            let tenant = self.order.pop_front()?;
            let Some(line) = self.tenants.get_mut(&tenant) else {
                continue;
            };
            let next = (line.running < most).then(|| line.waiting.pop_front());
            if let Some((_, reply)) = next.flatten() {
                line.running += 1;
                self.len -= 1;
                if !line.waiting.is_empty() {
                    self.order.push_back(tenant.clone());
                }
                return Some((tenant, reply));
            }
            self.order.push_back(tenant);
        }
        None
    }

    /// A job of a tenant has ended.
    pub(super) fn ended(&mut self, tenant: &TenantId) {
        if let Some(line) = self.tenants.get_mut(tenant) {
            line.running -= 1;
        }
        self.forget_idle(tenant);
    }

    pub(super) fn remove(&mut self, tenant: &TenantId, ticket: Ticket) {
        let Some(line) = self.tenants.get_mut(tenant) else {
            return;
        };
        if let Some(at) = line.waiting.iter().position(|(one, _)| *one == ticket) {
            line.waiting.remove(at);
            self.len -= 1;
            if line.waiting.is_empty() {
                self.order.retain(|one| one != tenant);
            }
        }
        self.forget_idle(tenant);
    }

    /// Takes out the last of the longest line, the latest where lines are equal. Dropping its sender
    /// tells it.
    pub(super) fn drop_from_longest(&mut self) -> Option<Ticket> {
        let last = |line: &TenantQueue| line.waiting.back().map(|(ticket, _)| *ticket);
        let longest = self
            .tenants
            .iter()
            .max_by_key(|(_, line)| (line.waiting.len(), last(line)));
        let (tenant, line) = longest?;
        let (tenant, ticket) = (tenant.clone(), last(line)?);
        self.remove(&tenant, ticket);
        Some(ticket)
    }

    fn forget_idle(&mut self, tenant: &TenantId) {
        let idle = |line: &TenantQueue| line.running == 0 && line.waiting.is_empty();
        if self.tenants.get(tenant).is_some_and(idle) {
            self.tenants.remove(tenant);
        }
    }
}
