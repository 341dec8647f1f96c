// Package orders has what the peers in Go have in common: the checks, the statement, the process.
package orders

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"google.golang.org/protobuf/types/known/timestamppb"

	listingsv1 "listings.example/peers/gen/listings/v1"
)

// The errors of Update, besides those of the database.
var (
	ErrNotFound = errors.New("there is no such order")
	ErrKeyTaken = errors.New("payment_idempotency_key belongs to another order")
)

// InvalidError says what is wrong with a request.
type InvalidError string

func (e InvalidError) Error() string { return string(e) }

const uniqueViolation = "23505"

const columns = "id, order_number, buyer_id, storefront_id, status, payment_status, currency, " +
	"subtotal_amount, shipping_amount, tax_amount, discount_amount, total_amount, " +
	"created_at, updated_at, payment_provider, payment_session_id, payment_intent_id, " +
	"payment_idempotency_key, payment_transaction_id"

// Fields in the order of the bits of the key of statements.
var fields = [...]struct {
	name string
	most int
}{
	{"payment_provider", 50},
	{"payment_session_id", 255},
	{"payment_intent_id", 255},
	{"payment_idempotency_key", 255},
	{"payment_status", 50},
	{"payment_transaction_id", 255},
}

var statements sync.Map // of the text by the set of fields

// Store updates orders.
type Store struct{ pool *pgxpool.Pool }

// Open connects to the database that LISTINGS_DATABASE_URL names.
func Open(ctx context.Context) (*Store, error) {
	config, err := pgxpool.ParseConfig(os.Getenv("LISTINGS_DATABASE_URL"))
	if err != nil {
		return nil, err
	}
	config.MaxConns = int32(number("LISTINGS_POOL_SIZE") * number("LISTINGS_WORKERS"))
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	return &Store{pool}, pool.Ping(ctx)
}

// Close waits for the connections.
func (s *Store) Close() { s.pool.Close() }

// Update writes the fields that are set in the request.
func (s *Store) Update(
	ctx context.Context, request *listingsv1.UpdateOrderPaymentRequest,
) (*listingsv1.UpdateOrderPaymentResponse, error) {
	values := [...]*string{
		request.PaymentProvider, request.PaymentSessionId, request.PaymentIntentId,
		request.PaymentIdempotencyKey, request.PaymentStatus, request.PaymentTransactionId,
	}
	set := 0
	args := make([]any, 1, 1+len(values))
	args[0] = request.OrderId
	if request.OrderId <= 0 {
		return nil, InvalidError("order_id must be greater than 0")
	}
	for i, value := range values {
		if value == nil {
			continue
		}
		if size := utf8.RuneCountInString(*value); size < 1 || size > fields[i].most {
			return nil, InvalidError(fmt.Sprintf("%s must have 1 to %d characters", fields[i].name, fields[i].most))
		}
		if strings.ContainsRune(*value, 0) {
			return nil, InvalidError(fields[i].name + " must not contain U+0000")
		}
		set |= 1 << i
		args = append(args, *value)
	}
	if set == 0 {
		return nil, InvalidError("set at least one payment field")
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	order := &listingsv1.Order{}
	var created, updated time.Time
	err := s.pool.QueryRow(ctx, statement(set), args...).Scan(
		&order.Id, &order.OrderNumber, &order.BuyerId, &order.StorefrontId, &order.Status,
		&order.PaymentStatus, &order.Currency, &order.SubtotalAmount, &order.ShippingAmount,
		&order.TaxAmount, &order.DiscountAmount, &order.TotalAmount, &created, &updated,
		&order.PaymentProvider, &order.PaymentSessionId, &order.PaymentIntentId,
		&order.PaymentIdempotencyKey, &order.PaymentTransactionId,
	)
	var refused *pgconn.PgError
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, ErrNotFound
	case errors.As(err, &refused) && refused.Code == uniqueViolation:
		return nil, ErrKeyTaken
	case err != nil:
		return nil, err
	}
	order.CreatedAt, order.UpdatedAt = timestamppb.New(created), timestamppb.New(updated)
	return &listingsv1.UpdateOrderPaymentResponse{Success: true, Order: order}, nil
}

func statement(set int) string {
	if text, ok := statements.Load(set); ok {
		return text.(string)
	}
	var sets strings.Builder
	place := 2
	for i, field := range fields {
		if set&(1<<i) != 0 {
			fmt.Fprintf(&sets, "%s = $%d, ", field.name, place)
			place++
		}
	}
	text := "UPDATE orders SET " + sets.String() +
		"updated_at = greatest(clock_timestamp(), updated_at + interval '1 microsecond') " +
		"WHERE id = $1 RETURNING " + columns
	statements.Store(set, text)
	return text
}

// Run serves with a store until SIGTERM. What serve returns stops it in order.
func Run(serve func(*Store, net.Listener) (stop func())) {
	ctx, done := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer done()
	store, err := Open(ctx)
	if err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	stop := serve(store, listener)
	fmt.Printf("Serving on http://%s\n", listener.Addr())
	<-ctx.Done()
	stop()
	store.Close()
}

func number(name string) int {
	value, err := strconv.Atoi(os.Getenv(name))
	if err != nil {
		log.Fatalf("%s: %v", name, err)
	}
	return value
}
