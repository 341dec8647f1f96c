"""Where the sequences come from: documentation of providers, and public reports."""

from typing import Final

STRIPE_ACH: Final = "https://docs.stripe.com/payments/ach-direct-debit"
STRIPE_ADAPTIVE_PRICING: Final = (
    "https://docs.stripe.com/payments/currencies/localize-prices/adaptive-pricing"
)
STRIPE_DELIVERY: Final = "https://docs.stripe.com/webhooks#event-ordering"
STRIPE_DISPUTES: Final = "https://docs.stripe.com/disputes/how-disputes-work"
STRIPE_DISPUTE_STATUS: Final = "https://docs.stripe.com/api/disputes/object#dispute_object-status"
STRIPE_DUPLICATES: Final = "https://docs.stripe.com/webhooks#handle-duplicate-events"
STRIPE_FULFILLMENT: Final = "https://docs.stripe.com/checkout/fulfillment"
STRIPE_HOLD: Final = "https://docs.stripe.com/payments/place-a-hold-on-a-payment-method"
STRIPE_IDEMPOTENCY: Final = "https://docs.stripe.com/api/idempotent_requests"
STRIPE_INTENTS: Final = "https://docs.stripe.com/payments/paymentintents/lifecycle"
STRIPE_MULTICAPTURE: Final = "https://docs.stripe.com/payments/multicapture"
STRIPE_REFUND_STATUS: Final = "https://docs.stripe.com/api/refunds/object#refund_object-status"
STRIPE_REFUNDS: Final = "https://docs.stripe.com/refunds#failed-refunds"
STRIPE_SEPA: Final = "https://docs.stripe.com/payments/sepa-debit"
STRIPE_SESSIONS: Final = "https://docs.stripe.com/api/checkout/sessions/object"
STRIPE_ISSUE_5812: Final = "https://github.com/woocommerce/woocommerce-gateway-stripe/issues/5812"
STRIPE_ISSUE_5935: Final = "https://github.com/woocommerce/woocommerce-gateway-stripe/pull/5935"
STRIPE_ISSUE_895: Final = "https://github.com/umbraco/Umbraco.Commerce.Issues/issues/895"

IXOPAY_API: Final = "https://gateway.ixopay.com/documentation/apiv3"
IXOPAY_CALLBACKS: Final = (
    "https://documentation.ixopay.com/docs/reference/integration/callbacks/notification-types"
)
ALLSECURE_GATEWAY: Final = "https://asxgw.com/documentation/gateway"

PAYPAL_CAPTURES: Final = "https://developer.paypal.com/docs/api/payments/v2/#captures_get"
PAYPAL_DISPUTES: Final = "https://developer.paypal.com/docs/disputes/disputes-reference"
PAYPAL_EVENTS: Final = "https://developer.paypal.com/api/rest/webhooks/event-names/"
PAYPAL_ORDERS: Final = "https://developer.paypal.com/docs/api/orders/v2/#orders_get"
PAYPAL_UNCAPTURED: Final = "https://developer.paypal.com/payment-methods/uncaptured-payments.md"
PAYPAL_ISSUE_1286: Final = "https://github.com/paypal/PayPal-PHP-SDK/issues/1286"
PAYPAL_ISSUE_395: Final = "https://github.com/umbraco/Umbraco.Commerce.Issues/issues/395"

ADYEN_CANCEL_OR_REFUND: Final = (
    "https://docs.adyen.com/online-payments/classic-integrations/modify-payments/cancel-or-refund"
)
ADYEN_CAPTURE: Final = "https://docs.adyen.com/online-payments/capture"
ADYEN_DISPUTES: Final = "https://docs.adyen.com/risk-management/disputes-api/dispute-notifications/"
ADYEN_EXPIRE: Final = "https://docs.adyen.com/api-explorer/Webhooks/1/post/EXPIRE"
ADYEN_FAILURES: Final = "https://docs.adyen.com/online-payments/capture/failure-reasons"
ADYEN_OFFER_CLOSED: Final = "https://docs.adyen.com/api-explorer/Webhooks/1/post/OFFER_CLOSED"
ADYEN_REFUND: Final = "https://docs.adyen.com/online-payments/refund"
ADYEN_SEPA: Final = "https://docs.adyen.com/risk-management/chargeback-guidelines/sepa-chargebacks"
ADYEN_ISSUE_256: Final = "https://github.com/Adyen/adyen-magento/issues/256"
ADYEN_ISSUE_2265: Final = "https://github.com/Adyen/adyen-magento2/issues/2265"
ADYEN_ISSUE_2999: Final = "https://github.com/Adyen/adyen-magento2/issues/2999"
ADYEN_ISSUE_3313: Final = "https://github.com/Adyen/adyen-magento2/issues/3313"

MOLLIE_CAPTURES: Final = "https://docs.mollie.com/docs/place-a-hold-for-a-payment"
MOLLIE_CHARGEBACKS: Final = "https://docs.mollie.com/docs/chargebacks"
MOLLIE_ORDERS: Final = "https://docs.mollie.com/orders/status-changes"
MOLLIE_REFUNDS: Final = "https://docs.mollie.com/reference/refunds-api-webhooks"
MOLLIE_STATUS: Final = "https://docs.mollie.com/docs/status-change"
MOLLIE_ISSUE_139: Final = "https://github.com/mollie/WooCommerce/issues/139"
MOLLIE_ISSUE_668: Final = "https://github.com/mollie/WooCommerce/issues/668"
MOLLIE_ISSUE_1159: Final = "https://github.com/mollie/WooCommerce/issues/1159"
MOLLIE_ISSUE_123: Final = "https://github.com/mollie/magento2/issues/123"
MOLLIE_ISSUE_157: Final = "https://github.com/laravel/cashier-mollie/issues/157"
MOLLIE_ISSUE_424: Final = "https://github.com/mollie/PrestaShop/issues/424"

KLARNA_AUTHORIZATIONS: Final = (
    "https://docs.klarna.com/payments/after-payments/order-management/manage-orders-with-the-api/"
    "refund-orders-and-manage-authorizations"
)
KLARNA_CAPTURES: Final = (
    "https://docs.klarna.com/acquirer/klarna/after-payments/order-management/"
    "order-management-in-a-nutshell"
)
KLARNA_STATES: Final = (
    "https://docs.klarna.com/acquirer/klarna-direct/after-payments/manage-payment-transactions/"
)

AIP_154: Final = "https://google.aip.dev/154"
